"""Bytes through a relay, as many as go: python -m loadtest.byte_stream ADDRESS|sink ... (see --help).

With `sink` it listens, writes its address, and reads what comes, answering once it has as much as a connection
announced. With an address it connects there, writes `ready`, waits for a line on standard input, sends, waits
for the answers, and writes one JSON line: bytes, seconds.
"""

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Callable

CHUNK = bytes(1 << 20)
TIMEOUT_S = 120.0


def serve(connection: socket.socket) -> None:
    """Read as much as the first eight bytes say, and answer. (The end of a stream would say it too, but the reference's
    gateway passes no end on before it closes both ways.)"""
    buffer = bytearray(1 << 20)
    with connection:
        left = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
        while left and (count := connection.recv_into(buffer)):
            left -= count
        connection.sendall(b"all" if not left else b"too much or too little")


def sink() -> None:
    """Until standard input ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)

        def accept() -> None:
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        sys.stdin.read()


def send(connection: socket.socket, size: int) -> None:
    connection.sendall(size.to_bytes(8, "big"))
    left = size
    view = memoryview(CHUNK)
    while left:
        left -= connection.send(view[: min(left, len(CHUNK))])
    answer = connection.recv(100)
    if answer != b"all":
        raise SystemExit(f"sent {size} bytes, the sink says {answer!r}")


def together(count: int, run: Callable[[int], None]) -> None:
    """`run(number)` for each number, in threads; raises SystemExit if one has not succeeded."""
    succeeded: list[int] = []

    def one(number: int) -> None:
        run(number)
        succeeded.append(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(succeeded) != count:
        raise SystemExit("not all bytes arrived")


def source(address: str, size: int, connections: int) -> None:
    host, _, port = address.rpartition(":")
    opened = [socket.create_connection((host, int(port)), TIMEOUT_S) for _ in range(connections)]
    print("ready", flush=True)
    sys.stdin.readline()
    each = size // connections
    began = time.perf_counter()
    together(connections, lambda number: send(opened[number], each))
    print(json.dumps({"bytes": each * connections, "seconds": time.perf_counter() - began}), flush=True)
    for connection in opened:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="host:port to send to, or `sink`")
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--connections", type=int, default=1)
    args = parser.parse_args()
    if args.address == "sink":
        sink()
    else:
        source(args.address, args.bytes, args.connections)


if __name__ == "__main__":
    main()
