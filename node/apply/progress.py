"""One request may take longer than a process may be silent: deleting a million keys takes ten seconds and more.

While entries are executed, a thread says that this process lives. It could not tell an endless loop from long work;
but neither could a new generation, which would execute the same entry again.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final

from kvorum.lifeline import Lifeline

INTERVAL_S: Final = 1.0


class Progress:
    """`with` it around work that may take long; `close` ends its thread."""

    def __init__(self, lifeline: Lifeline) -> None:
        self._lifeline = lifeline
        self._lock = threading.Lock()
        self._working = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def __enter__(self) -> None:
        self._working = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:  # no two threads may speak at the same time
            self._working = False

    def close(self) -> None:
        """No beats from here on."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(INTERVAL_S):
            with self._lock:
                if self._working:
                    self._lifeline.beat(time.monotonic())
