"""The workers of one proxy tell each other their figures: a scrape reaches one of them, and means all.

Each listens on a unix socket in the proxy's run directory, and says its figures as JSON to whoever connects.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import orjson

from proxy.metrics import Figures, Measure, total

TIMEOUT_S: Final = 2.0
ANSWER_BYTES: Final = 16 * 1024 * 1024


class Siblings:
    """The workers 0 to `count` - 1, of which this is `index`; `run_dir` is None when it is alone."""

    def __init__(self, run_dir: str | None, index: int, count: int, measure: Measure) -> None:
        self._run_dir = run_dir
        self._index = index
        self._count = count
        self._measure = measure
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Answer the others from now on."""
        if self._run_dir is not None:
            path = Path(self._path(self._index))
            path.unlink(missing_ok=True)  # of a worker that died in this place
            self._server = await asyncio.start_unix_server(self._answer, str(path))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def figures(self) -> Figures:
        """The sums over all workers that answer in time."""
        others = [self._ask(index) for index in range(self._count) if index != self._index]
        answers = await asyncio.gather(*others)
        parts = [self._measure(), *(part for part in answers if part is not None)]
        return {**total(parts), "kvorum_grpc_proxy_workers": len(parts)}

    def _path(self, index: int) -> str:
        return f"{self._run_dir}/figures-{index}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(orjson.dumps(self._measure()))
        writer.close()

    async def _ask(self, index: int) -> Figures | None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._path(index), limit=ANSWER_BYTES)
                try:
                    figures: Figures = orjson.loads(await reader.read())
                finally:
                    writer.close()
        except (OSError, TimeoutError, orjson.JSONDecodeError):
            return None  # it is being started again; the page says how many have told
        return figures
