"""The supervisor: starts a member's processes, watches them, and ends or restarts them together.

The rules are in `node.generation`; here are the processes, sockets and signals.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from kvorum.lifeline import TEXT_MAX_BYTES, Lifeline, Word, decode, encode
from kvorum.log import Logger
from kvorum.spawn import STOP_SIGNALS, ChildProcess
from node.child import ChildContext, HeldFile, Listener, Role, Serves, run_child
from node.config import Config
from node.generation import Generation, Restarts, State
from node.identity import Identity, founding_bytes
from node.rundir import make_run_dir, remove_run_dir

ENTRIES: Final[Mapping[Role, str]] = {
    Role.APPLY: "node.apply.process:main",
    Role.RAFT: "node.raft.process:main",
    Role.WATCH: "node.watch.process:main",
    Role.FRONT: "node.front.process:main",
}
"""Where each role begins, in the order of starting: the one that takes longest first."""

STOP_ORDER: Final = (Role.FRONT, Role.RAFT, Role.APPLY, Role.WATCH)
SILENCE_LIMIT_S: Final = 10.0
STOP_LIMIT_S: Final = 10.0
INCARNATION_BYTES: Final = 6
REMOVED: Final = "the member has been permanently removed from the cluster"


class Ending(NamedTuple):
    """How the member ended: the signal that stopped it, or an exit code and, if it failed, why."""

    signal: int | None
    code: int = 0
    error: str = ""


@dataclass(slots=True)
class _Running:
    role: Role
    name: str
    process: ChildProcess
    line: socket.socket
    alive: bool = True
    speaks: bool = True
    """Its end of the line is open."""


class Supervisor:
    """Runs one member.

    `listeners` are bound and stay open over generations, so that clients queue meanwhile. `on_ready` is called when the
    first generation serves. `entries` and the limits are arguments for tests alone.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        listeners: Sequence[Listener],
        lock_fd: int,
        log: Logger,
        *,
        on_ready: Callable[[], None],
        entries: Mapping[Role, str] = ENTRIES,
        silence_limit_s: float = SILENCE_LIMIT_S,
        stop_limit_s: float = STOP_LIMIT_S,
    ) -> None:
        self._config = config
        self._identity = identity
        self._peer_listeners = tuple(listener for listener in listeners if listener.serves is Serves.PEERS)
        self._client_listeners = tuple(listener for listener in listeners if listener.serves is not Serves.PEERS)
        self._founding = founding_bytes(identity)
        self._remotes = tuple(
            (member.id, member.peer_urls) for member in identity.members if member.id != identity.member_id
        )
        self._lock = HeldFile(lock_fd)
        self._log = log
        self._on_ready = on_ready
        self._entries = entries
        self._silence_limit_s = silence_limit_s
        self._stop_limit_s = stop_limit_s
        self._children: list[_Running] = []
        self._signal: int | None = None
        self._signal_fd = -1
        self._poll = select.poll()
        self._served = False

    def run(self) -> Ending:
        """Run the member until it is stopped or given up. Called once, in the process's main thread.

        Raises OSError if a run directory cannot be made.
        """
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        handlers = {number: signal.signal(number, _noted) for number in STOP_SIGNALS}
        wakeup_before = signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        self._signal_fd = wake_r
        self._poll.register(wake_r, select.POLLIN)
        try:
            return self._run_generations()
        finally:
            self._kill_all()
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(wake_r)
            os.close(wake_w)

    def _run_generations(self) -> Ending:
        restarts = Restarts()
        number = 0
        while True:
            number += 1
            run_dir = make_run_dir(self._config.data_dir)
            try:
                begun_s = time.monotonic()
                generation = self._start(run_dir, begun_s)
                was_ready = self._watch(generation, number)
                if generation.state is State.FINISHED:
                    self._log.warn("server error", error=REMOVED, reason=generation.reason)
                    self._log.warn("data-dir used by this member must be removed", data_dir=self._config.data_dir)
                if self._signal is not None or generation.state is State.FINISHED:
                    self._stop(generation)
                    return Ending(self._signal)
                lived_s = time.monotonic() - begun_s
            finally:
                self._kill_all()
                remove_run_dir(self._config.data_dir, run_dir)
            wait_s: float | None
            if generation.state is State.RESTARTING:
                wait_s = restarts.after_request(lived_s)
                self._log.info("all processes are started again", reason=generation.reason, generation=number)
            else:
                wait_s = restarts.after_failure(was_ready, lived_s)
                again = "a process of the member failed; all are started again"
                self._log.error(
                    again if wait_s is not None else "the member failed",
                    process=generation.failed_child,
                    reason=generation.reason,
                    generation=number,
                    was_ready=was_ready,
                )
            if wait_s is None:
                return Ending(None, 1, f"{generation.failed_child}: {generation.reason}")
            if self._wait_for_signal(wait_s):
                return Ending(self._signal)

    def _start(self, run_dir: str, now_s: float) -> Generation:
        incarnation = int.from_bytes(os.urandom(INCARNATION_BYTES), "big")
        places = [
            (role, index)
            for role in self._entries
            for index in range(self._config.front_workers if role is Role.FRONT else 1)
        ]
        generation = Generation([_name(*place) for place in places], now_s, self._silence_limit_s)
        for role, index in places:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            with theirs:
                child = ChildContext(
                    role=role,
                    index=index,
                    config=self._config,
                    run_dir=run_dir,
                    incarnation=incarnation,
                    parent_pid=os.getpid(),
                    member_id=self._identity.member_id,
                    cluster_id=self._identity.cluster_id,
                    listeners=self._listeners_of(role),
                    lifeline=Lifeline(theirs.fileno(), self._silence_limit_s / 10),
                    lock=self._lock,
                    founding=self._founding,
                    remotes=self._remotes,
                )
                process = ChildProcess(run_child, (child, self._entries[role]), child.title)
                try:
                    process.start()
                except OSError as error:  # no process or memory to be had just now
                    ours.close()
                    generation.fail(_name(role, index), f"cannot be started: {error}")
                    return generation
            self._children.append(_Running(role, _name(role, index), process, ours))
            self._poll.register(process.sentinel, select.POLLIN)
            self._poll.register(ours, select.POLLIN)
        return generation

    def _listeners_of(self, role: Role) -> tuple[Listener, ...]:
        match role:
            case Role.FRONT:
                return self._client_listeners
            case Role.RAFT:
                return self._peer_listeners
            case _:
                return ()

    def _watch(self, generation: Generation, number: int) -> bool:
        """Watch until the generation fails or is to stop; whether it was ready meanwhile."""
        was_ready = False
        while self._signal is None and generation.state in (State.STARTING, State.READY):
            due_s = generation.next_check_s()
            self._turn(generation, None if due_s is None else due_s - time.monotonic())
            generation.check(time.monotonic())
            if generation.state is State.READY and not was_ready:
                was_ready = True
                self._say_ready(number)
        return was_ready

    def _say_ready(self, number: int) -> None:
        self._log.info("all processes of the member are ready", generation=number)
        for listener in self._client_listeners:
            if listener.serves is Serves.METRICS:
                self._log.info("serving metrics", address=str(listener.url))
                continue
            self._log.info("ready to serve client requests")
            msg = (
                "serving client traffic securely"
                if listener.is_secure
                else "serving client traffic insecurely; this is strongly discouraged!"
            )
            where = listener.url.socket_path if listener.url.is_unix else listener.url.host
            self._log.info(msg, traffic=str(listener.serves), address=where)
        if not self._served:
            self._served = True
            # done, and no order to drop the members that are added from now on
            self._config = replace(self._config, force_new_cluster=False)
            self._on_ready()

    def _turn(self, generation: Generation, timeout_s: float | None) -> None:
        """One wait: take signals, messages and ends in."""
        timeout_ms = None if timeout_s is None else max(0, int(timeout_s * 1000) + 1)
        ready = {fd for fd, _ in self._poll.poll(timeout_ms)}
        if self._signal_fd in ready:
            self._take_signals()
        for child in self._children:
            # Messages first: a child's last error comes before its end, and one that spoke is not silent.
            if child.speaks and child.line.fileno() in ready:
                self._read_line(child, generation)
        for child in self._children:
            if child.alive and child.process.sentinel in ready:
                self._read_line(child, generation)
                self._unregister(child)
                child.process.join()
                generation.ended(child.name, child.process.exitcode)

    def _read_line(self, child: _Running, generation: Generation) -> None:
        while child.speaks:
            try:
                packet = child.line.recv(TEXT_MAX_BYTES + 1)
            except BlockingIOError:
                return
            except ConnectionError:
                packet = b""
            if not packet:  # the child's end is closed; its sentinel tells of its end
                self._unregister_line(child)
                return
            word, text = decode(packet)
            now_s = time.monotonic()
            generation.heard(child.name, word, text, now_s)
            if word is Word.LONG_BEGIN:
                self._log.info("long operation begins", process=child.name, operation=text)
            elif word is Word.FAILED:
                self._log.warn("a process reports its failure", process=child.name, error=text)

    def _take_signals(self) -> None:
        for number in os.read(self._signal_fd, 4096):
            if number in STOP_SIGNALS and self._signal is None:
                self._signal = number
                self._log.info("received signal; shutting down", signal=signal.Signals(number).name)

    def _wait_for_signal(self, wait_s: float) -> bool:
        """Wait between two generations; whether the member is to stop instead."""
        until_s = time.monotonic() + wait_s
        while self._signal is None and (left_s := until_s - time.monotonic()) > 0:
            if self._poll.poll(int(left_s * 1000) + 1):
                self._take_signals()
        return self._signal is not None

    def _stop(self, generation: Generation) -> None:
        """Stop the roles one after the other; SIGKILL for those that are left after the limit.

        A generation that has just failed cannot drain: it is killed at once.
        """
        config = self._config
        fields = {
            "name": config.name,
            "data_dir": config.data_dir,
            "advertise_peer_urls": [str(url) for url in config.initial_advertise_peer_urls],
            "advertise_client_urls": [str(url) for url in config.advertise_client_urls],
        }
        self._log.info("closing etcd server", **fields)
        failed = generation.state is State.FAILED
        until_s = time.monotonic() + (0 if failed else self._stop_limit_s)
        for role in STOP_ORDER:
            stage = [child for child in self._children if child.role is role]
            for child in stage:
                if child.alive:
                    _tell_stop(child.line)
            while any(child.alive for child in stage) and (left_s := until_s - time.monotonic()) > 0:
                self._turn(generation, left_s)
        left = [child.name for child in self._children if child.alive]
        if left and not failed:
            self._log.warn("processes did not stop in time and are killed", processes=left)
        self._kill_all()
        self._log.info("closed etcd server", **fields)

    def _kill_all(self) -> None:
        for child in self._children:
            if child.alive:
                child.process.kill()
        for child in self._children:
            if child.alive:
                self._unregister(child)
                child.process.join()
            child.process.close()
            child.line.close()
        self._children.clear()

    def _unregister(self, child: _Running) -> None:
        child.alive = False
        self._poll.unregister(child.process.sentinel)
        self._unregister_line(child)

    def _unregister_line(self, child: _Running) -> None:
        if child.speaks:
            child.speaks = False
            self._poll.unregister(child.line)


def _name(role: Role, index: int) -> str:
    return f"front{index}" if role is Role.FRONT else str(role)


def _tell_stop(line: socket.socket) -> None:
    try:
        line.send(encode(Word.STOP))
    except OSError:
        return  # its end is closed or full of unread words: the limit of the stop takes care of it


def _noted(_number: int, _frame: object) -> None:
    """A Python handler must stand for the wake-up file descriptor to hear of a signal."""
