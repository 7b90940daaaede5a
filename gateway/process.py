"""The gateway's one process and one loop: accepts connections, finds each an endpoint, and relays.

A loop of its own over epoll, not asyncio's: an event here costs a dictionary look-up and two calls of the kernel
(docs/decisions/0014-gateway.md).
"""

import gc
import math
import random
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Final, NamedTuple

from gateway.balance import Balance, Endpoint
from gateway.config import Config, Listen, check_endpoints, read_endpoints, read_listen_addr
from gateway.dial import NO_ROOM, Dialer, prepare
from gateway.relay import Relay
from kvorum.descriptors import raise_fd_limit
from kvorum.init_daemon import notify_ready
from kvorum.listening import bind_tcp, listen_failed, tcp_place
from kvorum.log import Logger

BACKLOG: Final = 4096
"""Connections that wait to be accepted; the kernel cuts it to net.core.somaxconn."""

PIPES_MAX: Final = 64
"""Directions that can be stuck with a pipe of their own, 1 MiB each."""

SPARE_FDS: Final = 32
"""For the loop itself, the log, look-ups of names and probes."""

FULL_RETRY_S: Final = 1.0
"""When the system itself has no room for a connection, it is asked again after so long."""

ACCEPTS_PER_TURN: Final = 64
EVENTS_PER_TURN: Final = 512

STOP_S: Final = 5.0
"""What was read is still sent for so long after SIGTERM."""

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Room(NamedTuple):
    """How many connections and pipes the limit on file descriptors leaves room for."""

    connections: int
    pipes: int


def room(fds_max: int) -> Room:
    """Two descriptors per connection; an eighth of all, at most, for pipes. At least one connection."""
    pipes = min(PIPES_MAX, fds_max // 16)
    return Room(max((fds_max - SPARE_FDS - 2 * pipes) // 2, 1), pipes)


class Gateway:
    """Serves a listening socket, which it owns, until one of STOP_SIGNALS."""

    def __init__(
        self,
        listener: socket.socket,
        balance: Balance,
        dialer: Dialer,
        relay: Relay,
        epoll: select.epoll,
        connections_max: int,
        retry_delay_s: float,
        log: Logger,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self._listener_fd = listener.fileno()
        self._balance = balance
        self._dialer = dialer
        self._relay = relay
        self._epoll = epoll
        self._connections_max = connections_max
        self._retry_delay_s = retry_delay_s
        self._log = log
        self._now = now
        self._dialing: set[socket.socket] = set()
        self._probes: deque[tuple[float, int]] = deque()
        self._accepting = False
        self._resume_s = -math.inf
        self._told_that_none_is_active = False
        self._signals: list[int] = []

    def run(self) -> int:
        """Serve; gives the signal that ended it. No later one ends the process: the handlers stay."""
        woken, wake = socket.socketpair()
        with woken, wake:
            woken.setblocking(False)
            wake.setblocking(False)
            for number in STOP_SIGNALS:
                signal.signal(number, self._on_signal)
            signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
            self._epoll.register(woken.fileno(), select.EPOLLIN)
            try:
                self._accept_more()
                while not self._signals:
                    self._turn(math.inf)
                woken.recv(4096)  # what wakes from now on is a further signal
                self._stop()
            finally:
                signal.set_wakeup_fd(-1)
                self._close()
        return self._signals[0]

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _turn(self, until_s: float) -> None:
        """Wait for events, until `until_s` at the longest, and handle them."""
        relay, dialer = self._relay, self._dialer
        due_s = until_s
        if dialer.pending or self._probes or not self._accepting:
            due_s = min(due_s, dialer.due_s, self._probes[0][0] if self._probes else math.inf)
            if not self._accepting and self._resume_s > -math.inf:
                due_s = min(due_s, self._resume_s)
        timeout_s = -1.0 if due_s == math.inf else max(due_s - self._now(), 0.0)
        side_of, on_event = relay.sides.get, relay.on_event
        for fd, events in self._epoll.poll(timeout_s, EVENTS_PER_TURN):
            side = side_of(fd)
            if side is not None:
                on_event(side, events)
            elif fd in dialer.pending:
                dialer.on_event(fd)
            elif fd == self._listener_fd:
                self._accept()
            elif fd == dialer.wake_fd:
                dialer.on_lookups()
        if due_s < math.inf:
            dialer.on_time()
            self._probe()
        dialer.settle()
        relay.close_dead()
        if not self._accepting and not self._signals:
            self._accept_again()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if self._connections >= self._connections_max:
                self._pause(f"all {self._connections_max} connections are in use")
                return
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_ROOM:
                    self._resume_s = self._now() + FULL_RETRY_S
                    self._pause((error.strerror or str(error)).lower())
                    return
                continue  # it was broken before it was accepted (accept(2), "Error handling")
            prepare(client)
            self._dialing.add(client)
            self._serve(client)

    def _pause(self, reason: str) -> None:
        """Leave further connections in the kernel's queue."""
        self._epoll.unregister(self._listener_fd)
        self._accepting = False
        self._log.warn("accepting no connections for now", reason=reason, connections=self._connections)

    def _accept_again(self) -> None:
        """Accept again once a fiftieth of the places is free, so that a full gateway does not say so all the time."""
        free = self._connections_max - self._connections
        if free < max(self._connections_max // 50, 1) or self._now() < self._resume_s:
            return
        self._resume_s = -math.inf
        self._log.info("accepting connections again", connections=self._connections)
        self._accept_more()

    def _accept_more(self) -> None:
        self._epoll.register(self._listener_fd, select.EPOLLIN)
        self._accepting = True

    @property
    def _connections(self) -> int:
        return self._relay.connections + len(self._dialing)

    def _serve(self, client: socket.socket) -> None:
        """Find the client an endpoint."""
        place = self._balance.pick()
        if place is None:
            if not self._told_that_none_is_active:
                self._told_that_none_is_active = True
                self._log.error("no endpoint is active: connections are closed")
            self._dismiss(client)
            return
        endpoint = self._balance.endpoints[place]
        self._dialer.dial(endpoint.host, endpoint.port, partial(self._dialed, client, place))

    def _dialed(
        self, client: socket.socket, place: int, backend: socket.socket | None, error: str, no_room: bool
    ) -> None:
        if client not in self._dialing:  # the gateway stops
            if backend is not None:
                backend.close()
        elif backend is not None:
            self._dialing.remove(client)
            try:
                self._relay.join(client, backend)
            except OSError as failure:
                self._log.error("cannot relay a connection", error=str(failure))
        elif no_room:
            self._log.error("cannot dial an endpoint", address=str(self._balance.endpoints[place]), error=error)
            self._dismiss(client)
        else:
            if self._balance.deactivate(place):
                self._probes.append((self._now() + self._retry_delay_s, place))
                self._tell_inactive("deactivated endpoint", place, error)
            self._serve(client)

    def _dismiss(self, client: socket.socket) -> None:
        self._dialing.remove(client)
        client.close()

    def _probe(self) -> None:
        """Dial the endpoints whose time has come; each is either activated or has another time to wait."""
        now_s = self._now()
        while self._probes and self._probes[0][0] <= now_s:
            _, place = self._probes.popleft()
            endpoint = self._balance.endpoints[place]
            self._dialer.dial(endpoint.host, endpoint.port, partial(self._probed, place))

    def _probed(self, place: int, sock: socket.socket | None, error: str, no_room: bool) -> None:
        if sock is None:
            self._probes.append((self._now() + self._retry_delay_s, place))
            self._tell_inactive("failed to activate endpoint (stay inactive for another interval)", place, error)
            return
        sock.close()
        self._balance.activate(place)
        self._told_that_none_is_active = False
        self._log.info("activated", address=str(self._balance.endpoints[place]))

    def _tell_inactive(self, msg: str, place: int, error: str) -> None:
        address = str(self._balance.endpoints[place])
        self._log.warn(msg, address=address, interval=self._retry_delay_s, error=error)

    def _stop(self) -> None:
        """End all connections; what was read is still sent. A second signal ends them at once."""
        self._log.info("stopping", signal=signal.Signals(self._signals[0]).name, connections=self._connections)
        if self._accepting:
            self._epoll.unregister(self._listener_fd)
            self._accepting = False
        self._listener.close()
        for client in list(self._dialing):
            self._dismiss(client)
        self._relay.end_all()
        self._relay.close_dead()
        until_s = self._now() + STOP_S
        while self._relay.connections and self._now() < until_s and len(self._signals) == 1:
            self._turn(until_s)

    def _close(self) -> None:
        self._listener.close()
        self._relay.close()
        self._dialer.close()
        for client in list(self._dialing):
            self._dismiss(client)
        self._epoll.close()


def listen(at: Listen) -> socket.socket:
    """Raises ListenFailed."""
    listener = bind_tcp(at.address, at.port)
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise listen_failed(tcp_place(at.address, at.port), error) from None
    return listener


def is_own_address(address: str) -> bool:
    """True if it is an address of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True


def look_up(host: str) -> list[str]:
    """All addresses of a host, each once. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(0, "no such host") from None  # not a name that could be asked for
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def run(config: Config, environ: Mapping[str, str], log: Logger) -> int:
    """Serve until a signal of STOP_SIGNALS, and give its number. Raises StartFailed and ListenFailed."""
    endpoints: tuple[Endpoint, ...] = ()
    if config.discovery_srv:
        from gateway.discovery import discover  # its library is large, and few need it
        from gateway.verify import verifier
        from kvorum.dns_services import srv_records

        verify = verifier(config.trusted_ca_file, config.discovery_srv)
        endpoints = discover(config, srv_records, verify, log)
    if not endpoints and (config.endpoints_given or not config.discovery_srv):
        endpoints = read_endpoints(config.endpoints)
    at = read_listen_addr(config.listen_addr, look_up)
    found = check_endpoints(endpoints, config.listen_addr, at, look_up, is_own_address)
    limits = room(raise_fd_limit())
    listener = listen(at)
    epoll = select.epoll()
    dialer = Dialer(epoll, look_up, time.monotonic)
    for host, addresses in found.items():
        dialer.know(host, addresses)
    relay = Relay(epoll, limits.pipes)
    balance = Balance(endpoints, random.random)
    gateway = Gateway(listener, balance, dialer, relay, epoll, limits.connections, config.retry_delay_s, log)
    gc.freeze()
    gc.disable()  # nothing here makes cycles
    notify_ready(environ, log)
    log.info(
        "ready to proxy client requests",
        endpoints=[str(endpoint) for endpoint in endpoints],
        listen_addr=str(Endpoint(at.address, listener.getsockname()[1])),
        connections_max=limits.connections,
    )
    return gateway.run()
