"""Starting a child process: `multiprocess` with its spawn method, made lean.

Two costs are left out (a parent with four idle children: 70 MiB and 290 ms of CPU as the library does it, 42 MiB and
175 ms so). The library's resource tracker is a process of its own that cleans up named semaphores and shared memory, of
which a member has none. And it imports dill to pickle closures, which is 21 of its 31 ms and 4.5 of its 6.5 MiB in each
process; the standard pickler does here.
"""

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # the same code as multiprocess, which comes without types
    from multiprocessing import context, popen_spawn_posix, reduction, spawn, util
    from multiprocessing.process import BaseProcess
else:
    _without_dill = "dill" not in sys.modules
    if _without_dill:
        sys.modules["dill"] = None  # makes `import dill` an ImportError, which multiprocess expects
    try:
        from multiprocess import context, popen_spawn_posix, reduction, spawn, util
    finally:
        if _without_dill:
            del sys.modules["dill"]

_WITHOUT_DILL: Final = "import sys; sys.modules['dill'] = None; import multiprocess.spawn; del sys.modules['dill']; "

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class _Popen(popen_spawn_posix.Popen):
    """The library's launch without the resource tracker and without a second run of the parent's main module."""

    def __init__(self, process_obj: "BaseProcess") -> None:
        self._passed_fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        self._passed_fds.append(fd)
        return fd

    def _launch(self, process_obj: "BaseProcess") -> None:
        preparation = spawn.get_preparation_data(process_obj.name)
        preparation.pop("init_main_from_name", None)
        preparation.pop("init_main_from_path", None)
        pickled = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(preparation, pickled)
            reduction.dump(process_obj, pickled)
        finally:
            context.set_spawning_popen(None)
        sentinel, child_w = os.pipe()
        child_r, parent_w = os.pipe()
        self.finalizer = util.Finalize(self, _close_fds, (sentinel, parent_w))
        self.sentinel = sentinel
        try:
            *head, program, mark = spawn.get_command_line(tracker_fd=None, pipe_handle=child_r)
            command = [*head, _WITHOUT_DILL + program, mark, process_obj.name]
            passed_fds = [*self._passed_fds, child_r, child_w]
            self.pid = util.spawnv_passfds(os.fsencode(sys.executable), command, passed_fds)
        finally:
            os.close(child_r)
            os.close(child_w)
        try:
            with open(parent_w, "wb", closefd=False) as pipe:
                pipe.write(pickled.getbuffer())
        except BrokenPipeError:
            return  # it died already; its sentinel tells


def _close_fds(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


class ChildProcess(context.SpawnProcess):
    """A process in a fresh interpreter, called `name` in the system's lists. Its sentinel is readable once it is gone.

    SIGINT and SIGTERM are blocked in it at first, so that neither meets it before it has said how it takes them.
    """

    def __init__(self, target: Callable[..., None], args: tuple[object, ...], name: str) -> None:
        super().__init__(target=target, args=args, name=name)

    @staticmethod
    def _Popen(process_obj: "BaseProcess") -> popen_spawn_posix.Popen:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            return _Popen(process_obj)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
