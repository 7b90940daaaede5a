"""A member behind the gateway, asked with etcdctl."""

import subprocess
from pathlib import Path

from loadtest.launcher import Kind, Server, reference_tool
from tests.gateway.backends import TIMEOUT_S, GatewayProcess


def test_etcdctl_works_through_the_gateway(tmp_path: Path) -> None:
    member = Server(Kind.KVORUM, tmp_path)
    try:
        member.start()
        with GatewayProcess(tmp_path, f"--endpoints=http://{member.address}") as gateway:
            host, port = gateway.address

            def etcdctl(*arguments: str) -> str:
                return subprocess.run(
                    [reference_tool("etcdctl"), f"--endpoints={host}:{port}", *arguments],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT_S,
                    check=True,
                ).stdout

            assert etcdctl("put", "greeting", "hello") == "OK\n"
            assert etcdctl("get", "greeting") == "greeting\nhello\n"
            assert etcdctl("lease", "grant", "60").startswith("lease ")
            watch = subprocess.Popen(
                [reference_tool("etcdctl"), f"--endpoints={host}:{port}", "watch", "greeting", "--rev=2"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert watch.stdout is not None
            with watch.stdout:
                assert [watch.stdout.readline() for _ in range(3)] == ["PUT\n", "greeting\n", "hello\n"]
                etcdctl("put", "greeting", "goodbye")
                assert [watch.stdout.readline() for _ in range(3)] == ["PUT\n", "greeting\n", "goodbye\n"]
                watch.kill()
                watch.wait(TIMEOUT_S)
    finally:
        member.close()
