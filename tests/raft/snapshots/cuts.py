"""A way between sender and receiver that a test can cut, narrow, or falsify."""

import asyncio
from collections.abc import Callable


class Way:
    """Listens on a port of its own and passes connections on to `port`; counts what goes to the receiver."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.passed_bytes = 0
        self.connections = 0
        self.cut_at: list[int] = []
        """Positions in what passed, in all, at which connections are cut."""
        self.alter: Callable[[bytes], bytes] = lambda data: data
        """What becomes of each read of the sender's bytes."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 16)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """All connections, now, without a word."""
        for writer in list(self._writers):
            writer.transport.abort()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except ConnectionRefusedError:
            writer.transport.abort()
            return
        self._writers |= {writer, there_writer}
        for source, target, forth in ((reader, there_writer, True), (there_reader, writer, False)):
            task = asyncio.create_task(self._pass(source, target, forth))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, forth: bool) -> None:
        try:
            while data := await source.read(1 << 14):
                if forth:
                    data = self.alter(data)
                    self.passed_bytes += len(data)
                    if self.cut_at and self.passed_bytes > self.cut_at[0]:
                        del self.cut_at[0]
                        self.cut()
                        return
                target.write(data)
                await target.drain()
        except ConnectionError:
            return
        finally:
            self._writers.discard(target)
            target.close()
