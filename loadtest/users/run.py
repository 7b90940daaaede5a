"""One run of a scenario: its options, what it reports, and its end, at which everything written must have arrived.

In a distributed run each worker process is a run of its own, with keys of its own.
"""

import itertools
import json
import logging
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gevent
import grpc
from gevent.event import Event
from locust import User, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import RescheduleTask, StopUser
from locust.runners import MasterRunner
from locust.stats import RequestStats

from kvorum.pb.rpc_pb2 import DeleteRangeRequest, DeleteRangeResponse
from kvorum.ranges import end_of_prefix
from loadtest.checks import Expectation, Fault, FaultKind, RevisionFloor

SETTLE_S = 30.0
"""How long after the load has stopped nothing at all may arrive, while something is still to come."""
CALL_TIMEOUT_S = 30.0
_INTERRUPTED_S = 2.0
_POLL_S = 0.02
_LOGGED_FAULTS = 20
_PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)

_log = logging.getLogger("loadtest")


class FaultError(Exception):
    """What a check has found; locust counts equal texts together."""


class CallError(Exception):
    """A call ended with that code and message."""

    def __init__(self, error: grpc.RpcError) -> None:
        super().__init__(f"{error.code().name}: {error.details()}")
        self.code: grpc.StatusCode = error.code()


class Run:
    """What the users of one run share. Each scenario has a class of its own below this one."""

    rate: ClassVar[float] = 0.0
    """How many tasks a second a user begins unless --user-rate says otherwise; 0: one after the other."""

    @staticmethod
    def add_options(parser: LocustArgumentParser) -> None:
        """Adds the scenario's options, which the web page offers, too."""

    @staticmethod
    def fixed_users(options: Namespace) -> Mapping[type[User], int]:
        """The classes whose users are so many, however many users there are."""
        return {}

    def prepare(self) -> None:
        """Writes what must be there before the users start."""

    def __init__(self, environment: Environment) -> None:
        self.options = options_of(environment)
        self.prefix = f"loadtest/{os.getpid():x}-{time.time_ns():x}/".encode()
        """Of all keys of this run."""
        self.stopped = Event()
        """Set when no user may begin anything more."""
        self.in_flight = 0
        self.floor = RevisionFloor()
        self._fire: Callable[..., None] = environment.events.request.fire
        self._expectations: dict[Expectation, str] = {}
        self._closers: list[Callable[[], None]] = []
        self._endpoints = itertools.cycle((environment.host or "127.0.0.1:2379").removeprefix("http://").split(","))
        self._channels: dict[str, list[grpc.Channel]] = {}
        self._turns: dict[str, itertools.count[int]] = {}
        self._reported = 0
        self._faults = 0

    def channel(self, authority: str = "") -> grpc.Channel:
        """A connection for one user: its own, or with --connections one that it shares.

        `authority`: what it says the server's name is, instead of its address.
        """
        channels = self._channels.setdefault(authority, [])
        turn = next(self._turns.setdefault(authority, itertools.count()))
        if self.options.connections and len(channels) >= self.options.connections:
            return channels[turn % len(channels)]
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),  # else channels with equal options share a connection
        ]
        if authority:
            options.append(("grpc.default_authority", authority))
        channels.append(grpc.insecure_channel(next(self._endpoints), options))
        return channels[-1]

    def done(self, kind: str, name: str, seconds: float, size_bytes: int = 0) -> None:
        """Reports something that went well."""
        self._reported += 1
        self._fire(
            request_type=kind,
            name=name,
            response_time=seconds * 1000,
            response_length=size_bytes,
            exception=None,
            context={},
        )

    def failed(self, kind: str, name: str, seconds: float, error: Exception) -> None:
        """Reports something that failed: the run's exit status is 1."""
        self._fire(
            request_type=kind,
            name=name,
            response_time=seconds * 1000,
            response_length=0,
            exception=error,
            context={},
        )

    def report(self, name: str, faults: Iterable[Fault]) -> None:
        """Reports what a check has found, as failures."""
        for fault in faults:
            self._faults += 1
            if self._faults <= _LOGGED_FAULTS:
                _log.error("%s: %s: %s", name, fault.kind.value, fault.detail)
            self.failed("check", name, 0.0, FaultError(fault.kind.value))

    def expect(self, name: str, expectation: Expectation) -> None:
        """Waits for it at the end of the run."""
        self._expectations[expectation] = name

    def forget(self, expectation: Expectation) -> None:
        self._expectations.pop(expectation, None)

    def at_end(self, close: Callable[[], None]) -> None:
        """Calls `close` once everything has arrived, or never will."""
        self._closers.append(close)

    def end(self) -> None:
        """Lets no user begin anything, waits for what is on its way, and reports what does not come."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        self._wait(lambda: self.in_flight == 0, SETTLE_S)
        if self.in_flight:
            self.report("calls", [Fault(FaultKind.UNANSWERED, "")] * self.in_flight)
        self._wait(lambda: all(one.complete for one in self._expectations), SETTLE_S)
        for expectation, name in self._expectations.items():
            self.report(name, expectation.finish())
        self._close()

    def interrupt(self) -> None:
        """Ends without a verdict on what is still on its way: the servers may have been interrupted, too."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        self._wait(lambda: self.in_flight == 0, _INTERRUPTED_S)
        self._close()

    def _close(self) -> None:
        for close in self._closers:
            close()

    def clean(self) -> None:
        """Removes the run's keys, of every tenant."""
        end = end_of_prefix(self.prefix)
        for channels in self._channels.values():
            delete = channels[0].unary_unary(
                "/etcdserverpb.KV/DeleteRange",
                DeleteRangeRequest.SerializeToString,
                DeleteRangeResponse.FromString,
            )
            try:
                delete(DeleteRangeRequest(key=self.prefix, range_end=end), timeout=CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                _log.warning("the keys below %r are left: %s", self.prefix, CallError(error))
            for channel in channels:
                channel.close()

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Returns when it is so, or when nothing has been reported for that long."""
        deadline, reported = time.monotonic() + timeout_s, self._reported
        while not condition() and time.monotonic() < deadline:
            gevent.sleep(_POLL_S)
            if self._reported != reported:
                deadline, reported = time.monotonic() + timeout_s, self._reported


def options_of(environment: Environment) -> Namespace:
    """The command line, as the web page may have changed it."""
    options: Namespace | None = environment.parsed_options
    assert options is not None
    return options


_current: list[Run] = []


def current() -> Run:
    """The run that goes on."""
    return _current[-1]


def define(scenario: type[Run]) -> None:
    """Makes the file that calls it, once, the file of that scenario."""

    def add_options(parser: LocustArgumentParser) -> None:
        rate = f"tasks that a user begins a second, 0: one after the other (default {scenario.rate:g})"
        parser.add_argument("--user-rate", type=float, default=scenario.rate, help=rate)
        parser.add_argument("--connections", type=int, default=0, help="users share so many; 0: each has its own")
        parser.add_argument("--figures", type=Path, help="JSON file for all figures", include_in_web_ui=False)
        scenario.add_options(parser)

    def on_init(environment: Environment, **_: Any) -> None:
        # Without the web page the options are final, and what is prepared now is not of the run's time.
        if options_of(environment).headless and not isinstance(environment.runner, MasterRunner):
            run = scenario(environment)
            _current.append(run)
            try:
                run.prepare()
            except RescheduleTask as failed:  # ends locust, with the error in its log
                raise ConnectionError(f"the scenario cannot be prepared: {failed.__cause__}") from None
        # Timers count from when the loop last looked at the clock, which was before the imports.
        gevent.get_hub().loop.update_now()

    def on_start(environment: Environment, **_: Any) -> None:
        for user_class, count in scenario.fixed_users(options_of(environment)).items():
            user_class.fixed_count = count
        if isinstance(environment.runner, MasterRunner) or _current:
            return
        run = scenario(environment)
        _current.append(run)
        try:
            run.prepare()
        except (RescheduleTask, StopUser):  # it failed, as was reported, or the page has ended the run
            run.stopped.set()

    def on_stopping(environment: Environment, **_: Any) -> None:
        if _current:
            current().end()

    def on_stop(environment: Environment, **_: Any) -> None:
        if _current:
            _current.pop().clean()

    def on_quitting(environment: Environment, **_: Any) -> None:
        if _current:  # it was interrupted
            current().interrupt()
        path = options_of(environment).figures
        if path is not None:
            path.write_text(json.dumps(figures(environment.stats), indent=1))

    events.init_command_line_parser.add_listener(add_options)
    events.init.add_listener(on_init)
    events.test_start.add_listener(on_start)
    events.test_stopping.add_listener(on_stopping)
    events.test_stop.add_listener(on_stop)
    events.quitting.add_listener(on_quitting)


def figures(stats: RequestStats) -> dict[str, Any]:
    """Everything that was measured, times in ms, and every error. Locust's CSV files lack the last second."""
    return {
        "operations": [
            {
                "type": kind,
                "name": name,
                "count": entry.num_requests,
                "failures": entry.num_failures,
                "min": entry.min_response_time,
                "mean": entry.avg_response_time,
                **{f"p{100 * part:g}": entry.get_response_time_percentile(part) for part in _PERCENTILES},
                "max": entry.max_response_time,
            }
            for (name, kind), entry in sorted(stats.entries.items())
        ],
        "errors": [{"error": one.to_name(), "count": one.occurrences} for one in stats.errors.values()],
    }
