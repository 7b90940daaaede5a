"""The gateway as a process, with real sockets: what passes through, and what happens when something ends or breaks
(behaviour GW1-GW6)."""

import signal
import socket
from pathlib import Path

from tests.gateway.backends import READY, Backend, GatewayProcess, ask


def test_the_ready_line_names_the_endpoints(tmp_path: Path) -> None:
    """GW6."""
    with GatewayProcess(tmp_path, "--endpoints=http://127.0.0.1:1,https://127.0.0.1:2,127.0.0.1:3") as gateway:
        (line,) = gateway.lines(READY)
        assert line["endpoints"] == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
        assert line["level"] == "info"


def test_bytes_pass_both_ways_and_each_way_ends_by_itself(tmp_path: Path) -> None:
    """The echo server answers after the client has said that it is done."""

    def answer_at_the_end(connection: socket.socket) -> None:
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
        connection.sendall(b"<" + received + b">")

    message = bytes(range(256)) * 4096
    with Backend(answer_at_the_end) as backend, GatewayProcess(tmp_path, f"--endpoints={backend.address}") as gateway:
        assert ask(gateway, message) == b"<" + message + b">"
        assert ask(gateway, b"") == b"<>"


def test_sigterm_ends_it_and_is_its_status(tmp_path: Path) -> None:
    with Backend() as backend, GatewayProcess(tmp_path, f"--endpoints={backend.address}") as gateway:
        assert ask(gateway, b"x") == b"x"
        assert gateway.stop() == -signal.SIGTERM
