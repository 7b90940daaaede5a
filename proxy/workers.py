"""The processes of a proxy: one that serves by itself, or a parent and its workers on one port (--workers).

Workers share nothing but the port. One that dies is started again; its socket stays open in the parent, so that the
connections that come meanwhile wait instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from kvorum.descriptors import raise_fd_limit
from kvorum.lifeline import TEXT_MAX_BYTES, Lifeline, Word, decode, encode, tie_to_parent
from kvorum.log import Level, Logger, LogSettings
from kvorum.self_signed import CertificateFailed, provide_certificate
from kvorum.spawn import ChildProcess
from kvorum.urls import parse_url
from proxy import listeners
from proxy.config import Config, StartFailed
from proxy.listeners import Place
from proxy.process import DRAIN_S, run
from proxy.tenants.namespaces_file import NamespacesFile
from proxy.tls import listen_context, upstream_context
from proxy.worker import Worker, namespaces_file

EXIT_FAILED: Final = 1
READY: Final = "started gRPC proxy"
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
BEAT_S: Final = 1.0
SILENCE_S: Final = 10.0
FIRST_WORD_S: Final = 30.0
STOP_LIMIT_S: Final = DRAIN_S + 5.0
UNREADY_MAX: Final = 3
"""Times that a worker may die in a row before it is ready."""

RESTART_WAIT_S: Final = 0.2


def serve(config: Config, logger: Logger) -> int:
    """Serve until a signal or a failure ends it: an exit code, or minus the signal to die by. Raises StartFailed."""
    upstream_context(config.upstream_tls)
    namespaces = namespaces_file(config)
    config = _with_endpoints(config, logger)
    if config.auto_tls:
        _provide_certificate(config, logger)
    if config.listen_tls is not None:
        listen_context(config.listen_tls)
    raise_fd_limit()
    places = listeners.bind_clients(config.listen_addr, config.workers)
    metrics = listeners.bind_url(config.metrics_addr) if config.metrics_addr is not None else None
    logger.info("listening for gRPC proxy client requests", address=config.listen_addr)
    try:
        if config.workers == 1:
            return _serve_alone(Worker(config, 0, None, places[0], metrics, namespaces), logger)
        return Supervisor(config, places, metrics, namespaces, logger).run()
    finally:
        for place in (*places, *([metrics] if metrics is not None else [])):
            place.close()
        listeners.forget(config.listen_addr)
        if config.metrics_addr is not None and config.metrics_addr.is_unix:
            listeners.forget(f"unix:{config.metrics_addr.socket_path}")


def _with_endpoints(config: Config, logger: Logger) -> Config:
    if not config.discovery_srv:
        return config
    from kvorum.dns_services import srv_records  # with a large library
    from proxy.upstream.discovery import discover

    found = discover(config.discovery_srv, config.discovery_srv_name, config.insecure_discovery, srv_records, logger)
    return replace(config, endpoints=found)


def _provide_certificate(config: Config, logger: Logger) -> None:
    tls = config.listen_tls
    assert tls is not None
    try:
        urls = [] if config.listen_addr.startswith("unix:") else [parse_url(f"https://{config.listen_addr}")]
        provide_certificate(tls.cert_file, tls.key_file, urls, config.self_signed_cert_validity_years, logger)
    except (CertificateFailed, ValueError) as error:
        raise StartFailed(str(error)) from None


# Alone.


class _Signals:
    """The control of a worker that is the proxy."""

    def __init__(self, worker: Worker, logger: Logger) -> None:
        self._worker = worker
        self._logger = logger
        self.received: int | None = None
        self.was_ready = False

    def attach(self, stop: Callable[[], None], reload: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()

        def on_stop(number: int) -> None:
            self.received = number
            self._logger.info("received signal; shutting down", signal=signal.Signals(number).name)
            stop()

        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, on_stop, number)
        loop.add_signal_handler(signal.SIGHUP, reload)

    def ready(self) -> None:
        self.was_ready = True
        self._logger.info(READY, address=self._worker.config.listen_addr)


def _serve_alone(worker: Worker, logger: Logger) -> int:
    """A failure cuts all connections, and the proxy begins anew: it keeps nothing that could be broken still."""
    unready = 0
    while True:
        control = _Signals(worker, logger)
        try:
            run(worker, logger, control)
        except Exception as error:
            logger.error("the proxy failed", error=repr(error), stacktrace=traceback.format_exc())
        if control.received is not None:
            return -control.received
        unready = 0 if control.was_ready else unready + 1
        if unready == UNREADY_MAX:
            logger.fatal("the proxy cannot be started")
            return EXIT_FAILED
        gc.enable()
        gc.collect()
        time.sleep(RESTART_WAIT_S)


# Several.


class _Line:
    """The control of a worker that has a parent."""

    def __init__(self, lifeline: Lifeline) -> None:
        self._lifeline = lifeline

    def attach(self, stop: Callable[[], None], reload: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        lifeline = self._lifeline

        def on_word() -> None:
            if lifeline.stop_requested():
                loop.remove_reader(lifeline.fileno())
                stop()

        def beat() -> None:
            lifeline.beat(time.monotonic())
            loop.call_later(BEAT_S, beat)

        loop.add_reader(lifeline.fileno(), on_word)
        loop.add_signal_handler(signal.SIGHUP, reload)
        beat()

    def ready(self) -> None:
        self._lifeline.ready()


def run_worker(worker: Worker, lifeline: Lifeline, parent_pid: int) -> None:
    """The target of a worker's process."""
    tie_to_parent(parent_pid, f"kvorum-proxy{worker.index}")
    os.set_inheritable(lifeline.fileno(), False)
    config = worker.config
    logger = Logger.open(LogSettings(level=Level.DEBUG if config.debug else Level.INFO))
    try:
        run(worker, logger, _Line(lifeline))
    except Exception as error:
        lifeline.failed(f"{type(error).__name__}: {error}")
        logger.error("a worker failed", worker=worker.index, error=repr(error), stacktrace=traceback.format_exc())
        raise SystemExit(EXIT_FAILED) from None


@dataclass(slots=True)
class _Running:
    index: int
    process: ChildProcess
    line: socket.socket
    heard_s: float
    limit_s: float = FIRST_WORD_S
    ready: bool = False
    reload_missed: bool = False
    """SIGHUP came before it could take it."""


class Supervisor:
    """Starts the workers, and starts again what dies, until a signal comes."""

    def __init__(
        self,
        config: Config,
        places: list[Place],
        metrics: Place | None,
        namespaces: NamespacesFile | None,
        logger: Logger,
    ) -> None:
        self._config = config
        self._places = places
        self._metrics = metrics
        self._namespaces = namespaces
        self._logger = logger
        self._workers: dict[int, _Running] = {}
        self._unready: dict[int, int] = {}
        self._due: dict[int, float] = {}
        """When a worker that died is started again."""
        self._said_ready = False
        self._signal: int | None = None

    def run(self) -> int:
        """An exit code, or minus the signal to die by."""
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        numbers = (*STOP_SIGNALS, signal.SIGHUP)
        handlers = {number: signal.signal(number, lambda _number, _frame: None) for number in numbers}
        before = signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        run_dir = tempfile.mkdtemp(prefix="kvorum-proxy-")
        try:
            return self._run(run_dir, wake_r)
        finally:
            for worker in self._workers.values():
                worker.process.kill()
            for worker in list(self._workers.values()):
                self._forget(worker)
            shutil.rmtree(run_dir, ignore_errors=True)
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(wake_r)
            os.close(wake_w)

    def _run(self, run_dir: str, wake: int) -> int:
        for index in range(self._config.workers):
            self._start(index, run_dir)
        while self._signal is None:
            now = time.monotonic()
            for index in [index for index, at in self._due.items() if at <= now]:
                del self._due[index]
                self._start(index, run_dir)
            if not self._turn(wake, RESTART_WAIT_S if self._due else BEAT_S):
                return EXIT_FAILED
        self._logger.info("received signal; shutting down", signal=signal.Signals(self._signal).name)
        until = time.monotonic() + STOP_LIMIT_S
        for place in (*self._places, *([self._metrics] if self._metrics is not None else [])):
            place.close()
        for worker in self._workers.values():
            _tell_stop(worker.line)
        while self._workers and (left_s := until - time.monotonic()) > 0:
            self._turn(wake, left_s)
        return -self._signal

    def _start(self, index: int, run_dir: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            worker = Worker(self._config, index, run_dir, self._places[index], self._metrics, self._namespaces)
            arguments = (worker, Lifeline(theirs.fileno(), BEAT_S), os.getpid())
            process = ChildProcess(run_worker, arguments, f"kvorum-proxy{index}")
            process.start()
        self._workers[index] = _Running(index, process, ours, time.monotonic())

    def _turn(self, wake: int, timeout_s: float) -> bool:
        """One wait; False when the proxy gives up."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        for worker in self._workers.values():
            poll.register(worker.process.sentinel, select.POLLIN)
            poll.register(worker.line, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(int(timeout_s * 1000) + 1)}
        if wake in ready:
            for number in os.read(wake, 4096):
                self._take(number)
        now = time.monotonic()
        for worker in list(self._workers.values()):
            if worker.line.fileno() in ready:
                self._hear(worker, now)
            if worker.process.sentinel in ready:
                if not self._on_ended(worker, now):
                    return False
            elif now - worker.heard_s > worker.limit_s:
                self._logger.error("a worker is silent and is killed", worker=worker.index)
                worker.heard_s = now
                worker.process.kill()
        return True

    def _take(self, number: int) -> None:
        if number in STOP_SIGNALS:
            self._signal = self._signal or number
        elif number == signal.SIGHUP:
            self._reload()

    def _reload(self) -> None:
        with contextlib.suppress(StartFailed):  # the workers say so, and all keep what they have
            self._namespaces = namespaces_file(self._config)
        for worker in self._workers.values():
            if worker.ready:
                _tell_reload(worker)
            else:
                worker.reload_missed = True

    def _hear(self, worker: _Running, now: float) -> None:
        while True:
            try:
                packet = worker.line.recv(TEXT_MAX_BYTES + 1)
            except BlockingIOError:
                return
            except ConnectionError:
                return
            if not packet:
                return
            worker.heard_s = now
            worker.limit_s = SILENCE_S
            if decode(packet)[0] is Word.READY:
                worker.ready = True
                if worker.reload_missed:
                    _tell_reload(worker)
                self._unready.pop(worker.index, None)
                if not self._said_ready and all(one.ready for one in self._workers.values()):
                    self._said_ready = True
                    self._logger.info(READY, address=self._config.listen_addr, workers=self._config.workers)

    def _on_ended(self, worker: _Running, now: float) -> bool:
        self._forget(worker)
        if self._signal is not None:
            return True
        failed = 0 if worker.ready else self._unready.get(worker.index, 0) + 1
        self._unready[worker.index] = failed
        self._logger.error("a worker ended", worker=worker.index, was_ready=worker.ready)
        if failed == UNREADY_MAX:
            self._logger.fatal("a worker cannot be started", worker=worker.index)
            return False
        self._due[worker.index] = now + RESTART_WAIT_S
        return True

    def _forget(self, worker: _Running) -> None:
        worker.process.join()
        worker.process.close()
        worker.line.close()
        del self._workers[worker.index]


def _tell_reload(worker: _Running) -> None:
    assert worker.process.pid is not None
    os.kill(worker.process.pid, signal.SIGHUP)


def _tell_stop(line: socket.socket) -> None:
    try:
        line.send(encode(Word.STOP))
    except OSError:
        return  # it is gone, or will be killed when the time is over
