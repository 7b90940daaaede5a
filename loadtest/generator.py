"""The process that loads a server: python -m loadtest.generator ADDRESS PATH ... (see --help).

It connects and warms up, writes `ready`, waits for a line on standard input, makes the requests, and writes one JSON
line: requests, seconds. Whoever started it reads the server's CPU time between the two.
"""

import argparse
import itertools
import json
import os
import selectors
import sys
import time
from collections.abc import Iterator

from loadtest.h2_client import Connection, LoadError, grpc_message
from loadtest.messages import put_request


def same(message: bytes) -> Iterator[bytes]:
    """One message again and again."""
    while True:
        yield message


def fresh_puts(size_bytes: int) -> Iterator[bytes]:
    """Puts of ever new keys, each with a value that cannot be compressed."""
    number = 0
    while True:
        yield grpc_message(put_request(b"/fill/%09d" % number, os.urandom(size_bytes // 2).hex().encode()))
        number += 1


def drive(connections: list[Connection], messages: Iterator[bytes], requests: int, streams: int) -> float:
    """Makes `requests` requests with `streams` open on each connection; returns the seconds until the last reply."""
    for connection in connections:
        connection.ended = 0
    left = requests
    began = time.perf_counter()
    if len(connections) == streams == 1:  # one at a time: nothing but the round trip
        (connection,) = connections
        for number in range(requests):
            connection.send([next(messages)])
            while connection.ended <= number:
                connection.receive()
        return time.perf_counter() - began
    with selectors.DefaultSelector() as selector:
        waiting: dict[Connection, list[bytes]] = {}  # sent as far as the window allows
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            count = min(streams, left)
            left -= count
            batch = [next(messages) for _ in range(count)]
            waiting[connection] = batch[connection.send(batch) :]
        while sum(connection.ended for connection in connections) < requests:
            ready = selector.select(30)
            if not ready:
                raise LoadError("no reply for 30 s")
            for key, _ in ready:
                connection = key.data
                before = connection.ended
                connection.receive()
                count = min(connection.ended - before, left)
                left -= count
                batch = waiting[connection] + [next(messages) for _ in range(count)]
                if batch:
                    waiting[connection] = batch[connection.send(batch) :]
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "address", help="host:port of the server, or of several, joined by commas: connections go round them"
    )
    parser.add_argument("path", help="the method, such as /etcdserverpb.KV/Put")
    parser.add_argument("--message", default="", help="the request's bytes in hex")
    parser.add_argument(
        "--fresh-puts", type=int, metavar="BYTES", help="instead: puts of new keys, values of this size"
    )
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--streams", type=int, default=1, help="requests open at once on each connection")
    parser.add_argument("--warm-up", type=int, default=0, metavar="REQUESTS", help="requests before the measured ones")
    args = parser.parse_args()
    messages = fresh_puts(args.fresh_puts) if args.fresh_puts else same(grpc_message(bytes.fromhex(args.message)))
    addresses = itertools.cycle(args.address.split(","))
    connections = [Connection(next(addresses), args.path.encode()) for _ in range(args.connections)]
    if args.warm_up:
        drive(connections, messages, args.warm_up, args.streams)
    print("ready", flush=True)
    sys.stdin.readline()
    seconds = drive(connections, messages, args.requests, args.streams)
    print(json.dumps({"requests": args.requests, "seconds": seconds}), flush=True)
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    main()
