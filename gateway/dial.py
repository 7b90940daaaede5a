"""Connections to endpoints: a host's addresses one after the other, none of it waited for.

An address is tried for 5 s (the kernel alone would try for two minutes, while a client waits). Addresses of names are
looked up in a thread, and again when they are 10 s old, so that a name may move; while no server answers, the last ones
stay.
"""

import errno
import ipaddress
import math
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from gateway.config import Lookup

DIAL_TIMEOUT_S: Final = 5.0
"""For one address."""

NAME_AGE_S: Final = 10.0

KEEPALIVE_IDLE_S: Final = 15
KEEPALIVE_PROBES: Final = 9

NO_ROOM: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC))
"""Errors of this machine: no more descriptors, memory, or places in epoll."""

Dialed = Callable[[socket.socket | None, str, bool], None]
"""How a dial ended: with a connected socket; or with None, why, and whether it was this machine that had no room."""


def prepare(sock: socket.socket) -> None:
    """No delay of small segments, and peers that vanished are noticed: as the reference's sockets are set."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


class _Dial:
    """One connection that is wanted, and the socket of the address that is being tried."""

    __slots__ = ("address", "addresses", "done", "error", "port", "sock")

    def __init__(self, port: int, done: Dialed) -> None:
        self.port = port
        self.done = done
        self.addresses: deque[str] = deque()
        self.address = ""
        self.sock: socket.socket | None = None
        self.error = ""


class Dialer:
    """Dials by host and port.

    Whoever polls calls `on_event` for the descriptors in `pending`, `on_time` when `due_s` has come, `on_lookups` when
    `wake_fd` is readable, and after each batch of events `settle`.
    """

    def __init__(self, epoll: select.epoll, lookup: Lookup, now: Callable[[], float]) -> None:
        self.pending: dict[int, _Dial] = {}
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = epoll
        self._lookup = lookup
        self._now = now
        self._deadlines: deque[tuple[float, socket.socket, _Dial]] = deque()
        self._ended: deque[tuple[_Dial, socket.socket | None, str, bool]] = deque()
        self._dead: list[socket.socket] = []
        self._addresses: dict[str, tuple[float, Sequence[str]]] = {}
        self._waiting: dict[str, list[_Dial]] = {}
        self._found: deque[tuple[str, Sequence[str], str]] = deque()
        self._wake_lock = threading.Lock()
        epoll.register(self.wake_fd, select.EPOLLIN)

    @property
    def due_s(self) -> float:
        """When the oldest try is to be given up; infinity if there is none."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][2].sock is not deadlines[0][1]:
            deadlines.popleft()  # it ended before
        return deadlines[0][0] if deadlines else math.inf

    def know(self, host: str, addresses: Sequence[str]) -> None:
        """Addresses that were looked up just now."""
        self._addresses[host] = (self._now(), addresses)

    def dial(self, host: str, port: int, done: Dialed) -> None:
        """Connect. `done` is called once, by `settle`."""
        dial = _Dial(port, done)
        found_s, addresses = (self._now(), (host,)) if is_address(host) else self._addresses.get(host, (-math.inf, ()))
        if self._now() - found_s < NAME_AGE_S:
            dial.addresses.extend(addresses)
            self._try_next(dial)
        elif host in self._waiting:
            self._waiting[host].append(dial)
        else:
            self._waiting[host] = [dial]
            threading.Thread(target=self._look_up, args=(host,), daemon=True).start()

    def on_event(self, fd: int) -> None:
        """A try has ended."""
        dial = self.pending[fd]
        sock = self._take(dial)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._dead.append(sock)
            self._failed(dial, code)
        else:
            self._ended.append((dial, sock, "", False))

    def on_time(self) -> None:
        """Give up the tries whose time is over."""
        now_s = self._now()
        while self.due_s <= now_s:
            dial = self._deadlines.popleft()[2]
            self._dead.append(self._take(dial))
            self._failed(dial, errno.ETIMEDOUT)

    def on_lookups(self) -> None:
        """Go on with the dials whose names have been looked up."""
        os.eventfd_read(self.wake_fd)
        while self._found:
            host, addresses, error = self._found.popleft()
            addresses = addresses or self._addresses.get(host, (0.0, ()))[1]
            if addresses:  # also if they are the old ones: no dial need wait soon again for servers that are silent
                self.know(host, addresses)
            for dial in self._waiting.pop(host):
                dial.addresses.extend(addresses)
                dial.error = f"lookup {host}: {error}"
                self._try_next(dial)

    def settle(self) -> None:
        """Tell how dials ended, and close the sockets of tries that failed: their descriptors must not be used again
        while the batch may still have events of them."""
        while self._ended:
            dial, sock, error, local = self._ended.popleft()
            dial.done(sock, error, local)
        for sock in self._dead:
            sock.close()
        self._dead.clear()

    def close(self) -> None:
        """Give everything up; nobody is told."""
        for dial in list(self.pending.values()):
            self._dead.append(self._take(dial))
        self._dead += [sock for _, sock, _, _ in self._ended if sock is not None]
        self._ended.clear()
        self.settle()
        with self._wake_lock:
            os.close(self.wake_fd)
            self.wake_fd = -1

    def _look_up(self, host: str) -> None:
        """In a thread of its own."""
        addresses: Sequence[str] = ()
        reason = "no such host"
        try:
            addresses = self._lookup(host)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        self._found.append((host, addresses, reason))
        with self._wake_lock:
            if self.wake_fd >= 0:
                os.eventfd_write(self.wake_fd, 1)

    def _try_next(self, dial: _Dial) -> None:
        """Try the next address; those that fail at once are passed over."""
        while dial.addresses:
            address = dial.address = dial.addresses.popleft()
            try:
                sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            except OSError as error:
                if error.errno in NO_ROOM:
                    self._ended.append((dial, None, (error.strerror or str(error)).lower(), True))
                    return
                dial.error = _error_text(dial, error.errno or 0)
                continue
            prepare(sock)
            code = sock.connect_ex((address, dial.port))
            if code not in (0, errno.EINPROGRESS):
                sock.close()
                dial.error = _error_text(dial, code)
                continue
            try:
                self._epoll.register(sock.fileno(), select.EPOLLOUT)
            except OSError as error:
                sock.close()
                self._ended.append((dial, None, str(error), True))
                return
            dial.sock = sock
            self.pending[sock.fileno()] = dial
            self._deadlines.append((self._now() + DIAL_TIMEOUT_S, sock, dial))
            return
        self._ended.append((dial, None, dial.error, False))

    def _failed(self, dial: _Dial, code: int) -> None:
        dial.error = _error_text(dial, code)
        self._try_next(dial)

    def _take(self, dial: _Dial) -> socket.socket:
        sock = dial.sock
        assert sock is not None
        dial.sock = None
        del self.pending[sock.fileno()]
        self._epoll.unregister(sock.fileno())
        return sock


def is_address(host: str) -> bool:
    """True if it is no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _error_text(dial: _Dial, code: int) -> str:
    place = f"[{dial.address}]" if ":" in dial.address else dial.address
    reason = "i/o timeout" if code == errno.ETIMEDOUT else f"connect: {os.strerror(code).lower()}"
    return f"dial tcp {place}:{dial.port}: {reason}"
