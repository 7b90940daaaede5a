"""curl and h2load, where they are installed."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kvorum.pb.rpc_pb2 import PutRequest, RangeRequest, RangeResponse
from loadtest.launcher import Server
from tests.calls import Api

curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
h2load = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")


def run(*command: str | Path) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


def grpc_frame(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4, "big") + body


@curl
def test_curl_over_http_1_1(server: Server, api: Api) -> None:
    api(PutRequest(key=b"curl", value=b"1"))
    body = json.dumps({"key": base64.b64encode(b"curl").decode()})
    reply = json.loads(run("curl", "-sS", "--fail", f"http://{server.address}/v3/kv/range", "-d", body))
    assert reply["kvs"][0]["value"] == base64.b64encode(b"1").decode()
    assert json.loads(run("curl", "-sS", "--fail", f"http://{server.address}/health"))["health"] == "true"


@curl
def test_curl_streams_a_watch(server: Server, api: Api) -> None:
    at = api(PutRequest(key=b"curl", value=b"1")).header.revision
    create = {"key": base64.b64encode(b"curl").decode(), "start_revision": at}
    url = f"http://{server.address}/v3/watch"
    command = ["curl", "-sS", "-N", url, "-d", json.dumps({"create_request": create})]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first, second = json.loads(process.stdout.readline()), json.loads(process.stdout.readline())
        process.kill()
    assert first["result"]["created"] is True
    assert second["result"]["events"][0]["kv"]["mod_revision"] == str(at)


@curl
def test_curl_calls_grpc_with_prior_knowledge(server: Server, api: Api, tmp_path: Path) -> None:
    api(PutRequest(key=b"curl", value=b"prior"))
    body, reply = tmp_path / "body", tmp_path / "reply"
    body.write_bytes(grpc_frame(RangeRequest(key=b"curl").SerializeToString()))
    version = run(
        *("curl", "-sS", "--http2-prior-knowledge", f"http://{server.address}/etcdserverpb.KV/Range"),
        *("-H", "content-type: application/grpc", "-H", "te: trailers"),
        *("--data-binary", f"@{body}", "-o", str(reply), "-w", "%{http_version} %{http_code}"),
    )
    assert version == b"2 200"
    assert RangeResponse.FromString(reply.read_bytes()[5:]).kvs[0].value == b"prior"


@h2load
@pytest.mark.parametrize(("clients", "streams"), [(1, 1), (4, 32)])
def test_h2load_gets_an_answer_to_each_request(
    server: Server, api: Api, tmp_path: Path, clients: int, streams: int
) -> None:
    api(PutRequest(key=b"h2load", value=b"v" * 100))
    body = tmp_path / "body"
    body.write_bytes(grpc_frame(RangeRequest(key=b"h2load").SerializeToString()))
    out = run(
        *("h2load", "-n", "500", "-c", str(clients), "-m", str(streams), "-d", str(body)),
        *("-H", "content-type: application/grpc", "-H", "te: trailers"),
        f"http://{server.address}/etcdserverpb.KV/Range",
    ).decode()
    assert "500 succeeded" in out
    data = re.search(r"\((\d+)\) data", out)
    assert data is not None and int(data[1]) > 500 * 100  # an error would have no message
