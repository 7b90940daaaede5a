"""CPU of kvorum's wire per unary echo request, measured with h2load.

    python -m loadtest.wire_echo [--loop uvloop|asyncio] [--seconds 3] [--size 256]

Prints requests per second and microseconds of the server's CPU (user and system) per request.
"""

import argparse
import asyncio
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import uvloop

from kvorum.wire import grpc
from kvorum.wire.head import Head
from kvorum.wire.server import Server
from kvorum.wire.server_connection import ServerConnection

PATH = "/echo.Echo/Echo"


def echo(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
    connection.reply(stream_id, message)


async def measure(arguments: argparse.Namespace) -> None:
    server = Server(unary={PATH: echo}, streams={})
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server.protocol_factory, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "message"
        body.write_bytes(grpc.frame(b"x" * arguments.size))
        command = ["h2load", f"-c{arguments.connections}", f"-m{arguments.streams}", f"-D{arguments.seconds}"]
        command += ["-t1", "-d", str(body), "-H", "content-type: application/grpc"]
        command += ["-H", "te: trailers", f"http://127.0.0.1:{port}{PATH}"]
        before = resource.getrusage(resource.RUSAGE_SELF)
        load = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = await load.communicate()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    count = server.routes[PATH].ok
    listener.close()
    await server.shutdown(0)
    text = output.decode()
    if not count:
        sys.exit(text)
    status = re.search(r"status codes:.*", text)
    rate = count / arguments.seconds
    print(f"{rate:,.0f} requests/s, {cpu_s / count * 1e6:.2f} us CPU per request; {status[0] if status else text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256, help="bytes of the message")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--streams", type=int, default=32)
    arguments = parser.parse_args()
    factory = uvloop.new_event_loop if arguments.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(measure(arguments))


if __name__ == "__main__":
    main()
