"""The links between a cluster's members as relays on loopback, so that they can be cut without privileges.

Every member advertises the port of a relay, which passes bytes on to the member's real peer listener. All members dial
the same port, so the relay finds out from the kernel's tables which of them has dialled. A blocked direction loses
nothing: its bytes stand still, as under lost packets that TCP sends again, and new connections wait.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from loadtest import processes

T = TypeVar("T")
Link = tuple[str, str]
"""(from, to): the names of two members."""


def socket_inode(local_port: int, remote_port: int) -> int | None:
    """The inode of the loopback TCP socket with these ports, from /proc/net/tcp (proc(5))."""
    local, remote = f"0100007F:{local_port:04X}", f"0100007F:{remote_port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == local and fields[2] == remote:
            return int(fields[9])
    return None


def holds_socket(root: int, inode: int) -> bool:
    """True when a process of the tree under `root` has that socket open."""
    name = f"socket:[{inode}]"
    for pid in processes.tree(root):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # it has just ended
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if str(entry.readlink()) == name:
                        return True
    return False


class _End(asyncio.Protocol):
    """One end of a relayed connection: what comes in here goes out at the other end."""

    def __init__(self, alive: "set[_End]", made: "Callable[[_End], None] | None" = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self.blocked = False
        self.full = False  # more waits to go out here than the transport wants to hold
        self.lost = asyncio.Event()
        self._alive = alive
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._alive.add(self)
        if self._made is not None:
            transport.pause_reading()
            self._made(self)

    def data_received(self, data: bytes) -> None:
        assert self.other is not None and self.other.transport is not None
        self.other.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()
        self._alive.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        self.full = True
        if self.other is not None:
            self.other.update()

    def resume_writing(self) -> None:
        self.full = False
        if self.other is not None:
            self.other.update()

    def update(self) -> None:
        """Reads exactly while the direction is open and the other end takes more."""
        assert self.transport is not None and self.other is not None
        if self.transport.is_closing():
            return
        if self.blocked or self.other.full:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()


class PeerLinks:
    """All relays of one cluster, on a loop in a thread of their own. A call returns when what it asks is in force."""

    def __init__(self, root_of: Callable[[str], int | None]) -> None:
        """`root_of` gives the root process of a member that runs."""
        self._root_of = root_of
        self._loop = asyncio.new_event_loop()
        self._servers: dict[str, asyncio.Server] = {}
        self._alive: set[_End] = set()
        self._open: dict[Link, set[_End]] = {}  # by (who dialled, whom): the dialling ends
        self._blocked: set[Link] = set()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="peer-links", daemon=True)
        self._thread.start()

    def add(self, name: str, port: int, target_port: int) -> None:
        """Relays 127.0.0.1:`port` to the peer listener of the member `name` on `target_port`."""

        async def serve() -> None:
            def accept() -> _End:
                return _End(self._alive, lambda end: self._spawn(self._relay(end, name, port, target_port)))

            self._servers[name] = await self._loop.create_server(accept, "127.0.0.1", port)

        self._run(serve())

    def block(self, *links: Link) -> None:
        """Nothing passes in these directions until `heal`."""
        self._run(self._set(self._blocked | set(links)))

    def isolate(self, name: str) -> None:
        """Blocks all directions from and to that member."""
        others = [other for other in self._servers if other != name]
        self.block(*((name, other) for other in others), *((other, name) for other in others))

    def heal(self) -> None:
        """Opens all directions; what stood still passes now."""
        self._run(self._set(set()))

    def drop_connections(self) -> None:
        """Closes every connection there is, whether its link is blocked or not; new ones can be made at once."""

        async def drop() -> None:
            for ends in self._open.values():
                for end in ends:
                    assert end.transport is not None
                    end.transport.abort()

        self._run(drop())

    @property
    def connections(self) -> dict[Link, int]:
        """How many connections are open, by (who dialled, whom)."""
        return {link: len(ends) for link, ends in self._open.items() if ends}

    def close(self) -> None:
        async def end() -> None:
            self._closing = True
            for server in self._servers.values():
                server.close()
            for task in self._tasks:
                task.cancel()
            # the loop's own tasks too: what it has accepted and not yet handed over is still a socket to close
            await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
            for one in self._alive:
                assert one.transport is not None
                one.transport.abort()
            while self._alive:
                await asyncio.sleep(0)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _set(self, blocked: set[Link]) -> None:
        self._blocked = blocked
        self._changed.set()
        self._changed = asyncio.Event()
        for (source, target), ends in self._open.items():
            for end in ends:
                self._apply(end, source, target)

    def _apply(self, end: _End, source: str, target: str) -> None:
        if end.other is None:
            return
        end.blocked = (source, target) in self._blocked
        end.other.blocked = (target, source) in self._blocked
        end.update()
        end.other.update()

    def _who_dialled(self, end: _End, port: int) -> str | None:
        assert end.transport is not None
        inode = socket_inode(end.transport.get_extra_info("peername")[1], port)
        if inode is None:
            return None
        for name in self._servers:
            root = self._root_of(name)
            if root is not None and holds_socket(root, inode):
                return name
        return None

    async def _relay(self, end: _End, target: str, port: int, target_port: int) -> None:
        """The life of one connection."""
        assert end.transport is not None
        source = None if self._closing else self._who_dialled(end, port)
        if source is None:  # it is gone already, or no member
            end.transport.abort()
            return
        ends = self._open.setdefault((source, target), set())
        ends.add(end)
        try:
            while {(source, target), (target, source)} & self._blocked:  # a handshake takes both directions
                await self._changed.wait()
            other = _End(self._alive)
            other.other = end
            try:
                await self._loop.create_connection(lambda: other, "127.0.0.1", target_port)
            except OSError:  # the member does not listen
                end.transport.abort()
                return
            end.other = other
            if end.lost.is_set():
                assert other.transport is not None
                other.transport.abort()
                return
            self._apply(end, source, target)
            await end.lost.wait()
        finally:
            ends.discard(end)
