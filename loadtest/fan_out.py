"""The process that watches: python -m loadtest.fan_out ADDRESS ... (see --help).

It opens connections, creates watchers of one key, writes `ready`, waits for a line on standard input, puts the key
again and again, each time when every watcher has had the last event, and writes one JSON line: deliveries, seconds.
Each watcher must get each revision once and in order, else the run fails.
"""

import argparse
import json
import selectors
import sys
import time

from kvorum.pb.rpc_pb2 import WatchResponse
from loadtest.h2_client import (
    ACK,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    Connection,
    LoadError,
    frame,
    grpc_message,
    header_blocks,
)
from loadtest.messages import put_request, watch_request

KEY = b"/fan-out/key"
TIMEOUT_S = 60.0


class Watching:
    """One connection with one Watch stream and some watchers on it."""

    def __init__(self, address: str, watchers: int) -> None:
        path = b"/etcdserverpb.Watch/Watch"
        self.connection = Connection(address, path)
        self.watchers = watchers
        self.created = 0
        self.events = 0
        self._last = dict.fromkeys(range(watchers), 0)  # watch id to the revision of its last event
        self._unread = bytearray()
        self._partial = b""
        create = grpc_message(watch_request(KEY))
        # a request of many messages: created in batches that no flow-control window can hold up
        self._creates = [create] * watchers
        self.connection.socket.sendall(frame(HEADERS, END_HEADERS, 1, header_blocks(path)[0]))
        self.create_more()

    def create_more(self) -> None:
        """Sends the next creates, never more than 200 ahead of their answers."""
        batch, self._creates = self._creates[:200], self._creates[200:]
        if batch:
            self.connection.socket.sendall(frame(DATA, 0, 1, b"".join(batch)))

    def receive(self) -> None:
        data = self.connection.socket.recv(1 << 20)
        if not data:
            raise LoadError("the server closed a connection")
        buffer = self._unread
        buffer += data
        at = 0
        while len(buffer) - at >= 9:
            end = at + 9 + int.from_bytes(buffer[at : at + 3], "big")
            if end > len(buffer):
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            if kind == DATA:
                self._messages(bytes(buffer[at + 9 : end]))
            elif kind == SETTINGS and not flags & ACK:
                self.connection.socket.sendall(frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                self.connection.socket.sendall(frame(PING, ACK, 0, bytes(buffer[at + 9 : end])))
            elif kind in (RST_STREAM, GOAWAY):
                raise LoadError(f"the server ended the watch: {bytes(buffer[at:end])!r}")
            at = end
        del buffer[:at]

    def _messages(self, data: bytes) -> None:
        data = self._partial + data
        at = 0
        while len(data) - at >= 5:
            end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
            if end > len(data):
                break
            self._take(WatchResponse.FromString(data[at + 5 : end]))
            at = end
        self._partial = data[at:]

    def _take(self, reply: WatchResponse) -> None:
        if reply.canceled:
            raise LoadError(f"a watcher was canceled: {reply}")
        if reply.created:
            self.created += 1
            if self.created % 200 == 0:
                self.create_more()
        for event in reply.events:
            last = self._last[reply.watch_id]
            revision = event.kv.mod_revision
            if last and revision != last + 1:
                raise LoadError(f"watcher {reply.watch_id} got revision {revision} after {last}")
            self._last[reply.watch_id] = revision
            self.events += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="host:port of the server")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--watchers", type=int, default=1000, help="on each connection's one stream")
    parser.add_argument("--puts", type=int, default=50)
    args = parser.parse_args()
    with selectors.DefaultSelector() as selector:
        all_watching = [Watching(args.address, args.watchers) for _ in range(args.connections)]
        for watching in all_watching:
            selector.register(watching.connection.socket, selectors.EVENT_READ, watching)

        def until(what: str, target: int) -> None:
            deadline = time.monotonic() + TIMEOUT_S
            while (got := sum(getattr(watching, what) for watching in all_watching)) < target:
                for key, _ in selector.select(1):
                    key.data.receive()
                if time.monotonic() > deadline:
                    raise LoadError(f"{got} of {target} {what} after {TIMEOUT_S} s")

        count = args.connections * args.watchers
        until("created", count)
        writer = Connection(args.address, b"/etcdserverpb.KV/Put")
        put = grpc_message(put_request(KEY, b"v" * 256))
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.perf_counter()
        for number in range(args.puts):
            writer.send([put])
            while writer.ended <= number:
                writer.receive()
            until("events", count * (number + 1))
        seconds = time.perf_counter() - began
        print(json.dumps({"deliveries": count * args.puts, "seconds": seconds}), flush=True)
        for watching in all_watching:
            watching.connection.close()
        writer.close()


if __name__ == "__main__":
    main()
