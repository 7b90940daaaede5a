"""What a child process of a member is given, and its first steps. Imports little: every child pays for it."""

import os
import sys
import traceback
from dataclasses import dataclass
from enum import StrEnum

from kvorum.lifeline import Lifeline, inherit, tie_to_parent
from kvorum.log import Logger
from kvorum.urls import Url
from node.config import Config


class Role(StrEnum):
    """What a child process does."""

    FRONT = "front"
    RAFT = "raft"
    APPLY = "apply"
    WATCH = "watch"


class Serves(StrEnum):
    """What a listener serves."""

    ALL = "grpc+http"
    GRPC = "grpc"
    HTTP = "http"
    METRICS = "metrics"
    """/metrics and the health checks, over HTTP."""
    PEERS = "peers"
    """The other members: the one kind that is raft's and not the fronts'."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound socket, shared by all that are given it; it listens already, except one for peers.

    `fd` is this process's own number for it.
    """

    url: Url
    serves: Serves
    fd: int

    @property
    def is_secure(self) -> bool:
        """Whether connections begin with TLS (`Config.client_tls`, of a peer listener `Config.peer_tls`)."""
        return self.url.is_secure

    def __reduce__(self) -> tuple[type["Listener"], tuple[Url, Serves, int]]:
        return Listener, (self.url, self.serves, inherit(self.fd))


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file descriptor that a child only has to keep open: the data directory's lock."""

    fd: int

    def __reduce__(self) -> tuple[type["HeldFile"], tuple[int]]:
        return HeldFile, (inherit(self.fd),)


@dataclass(frozen=True, slots=True)
class ChildContext:
    """Everything that a child process knows when its `main(child)` is called.

    `index` numbers the fronts from 0. `run_dir` is this generation's directory for sockets, `incarnation` its 48
    random bits. `listeners` are those for clients in fronts, those for members in raft, none elsewhere.

    `founding` is the first entry of the log of a member that founds its cluster (an internal.Founding message, the same
    at all of its founders); it is empty for one that joined, whose log begins empty. It counts only while the log is
    new. `remotes` are the other members and their peer URLs as they were at the first start: where to find them until
    the log says more.
    """

    role: Role
    index: int
    config: Config
    run_dir: str
    incarnation: int
    parent_pid: int
    member_id: int
    cluster_id: int
    listeners: tuple[Listener, ...]
    lifeline: Lifeline
    lock: HeldFile
    founding: bytes = b""
    remotes: tuple[tuple[int, tuple[str, ...]], ...] = ()

    @property
    def title(self) -> str:
        return f"kvorum-{self.role}{self.index if self.role is Role.FRONT else ''}"


def run_child(child: ChildContext, entry: str) -> None:
    """The target of the child process: tie it to its supervisor, import `module:function`, call it with `child`.

    An exception is told to the supervisor, logged with its traceback, and ends the process with 1.
    """
    tie_to_parent(child.parent_pid, child.title)
    for fd in (child.lock.fd, child.lifeline.fileno(), *(listener.fd for listener in child.listeners)):
        os.set_inheritable(fd, False)  # programs that a child runs are not the member
    try:
        module_name, _, function_name = entry.partition(":")
        __import__(module_name)
        getattr(sys.modules[module_name], function_name)(child)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        child.lifeline.failed(text)
        trace = traceback.format_exc()
        Logger.open(child.config.log).error("process failed", process=child.title, error=text, stacktrace=trace)
        sys.exit(1)
