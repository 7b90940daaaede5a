"""Starts and stops clusters of several members on loopback, of kvorum or of the reference."""

import contextlib
import http.client
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loadtest.launcher import READY_TIMEOUT_S, Kind, Port, Server, wait_until
from loadtest.peer_links import PeerLinks

ASK_TIMEOUT_S = 2.0


class RefusedError(Exception):
    """A member answered a call with an error: its gRPC code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def ask(address: str, path: str, request: Mapping[str, Any], timeout_s: float = ASK_TIMEOUT_S) -> Any:
    """The reply to a call through the JSON gateway; RefusedError for an error of the API, OSError without answer."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request("POST", path, json.dumps(request))
        response = connection.getresponse()
        reply = json.loads(response.read())
    except (http.client.HTTPException, json.JSONDecodeError) as error:  # it ended while it answered
        raise ConnectionError(f"{address}{path}: {error!r}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise RefusedError(int(reply.get("code", 2)), str(reply.get("message", reply)))
    return reply


class MemberStatus(NamedTuple):
    """How a member sees itself and its cluster; `leader` is 0 when it knows none."""

    member_id: int
    leader: int
    raft_term: int
    raft_applied_index: int
    revision: int


def status(server: Server, timeout_s: float = ASK_TIMEOUT_S) -> MemberStatus:
    """What that member says; raises as `ask`."""
    reply = ask(server.address, "/v3/maintenance/status", {}, timeout_s)
    header = reply["header"]
    return MemberStatus(
        int(header["member_id"]),
        int(reply.get("leader", 0)),
        int(reply.get("raftTerm", 0)),
        int(reply.get("raftAppliedIndex", 0)),
        int(header.get("revision", 0)),
    )


class Cluster:
    """Members m1, m2, … that found a cluster together when first started; `links` when they speak through relays."""

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        size: int = 3,
        flags: Mapping[str, str] | None = None,
        *,
        relayed: bool = False,
    ) -> None:
        self.kind = kind
        self.members: list[Server] = []
        self.links: PeerLinks | None = None
        self._relay_ports: list[Port] = []
        self._urls: dict[str, str] = {}
        for number in range(1, size + 1):
            name = f"m{number}"
            (directory / name).mkdir(parents=True, exist_ok=True)
            member = Server(kind, directory / name, flags, name)
            self.members.append(member)
            self._urls[name] = f"http://{member.peer_address}"
        if relayed:
            self._relay()
        self._describe(self.members, "new")

    def _relay(self) -> None:
        self.links = PeerLinks(self._root_of)
        for member in self.members:
            port = Port()
            self._relay_ports.append(port)
            self.links.add(member.name, port.number, int(member.peer_address.rpartition(":")[2]))
            self._urls[member.name] = f"http://127.0.0.1:{port.number}"

    def _root_of(self, name: str) -> int | None:
        member = self.member(name)
        return member.pid if member.running else None

    def _describe(self, members: Sequence[Server], state: str) -> None:
        """Gives these members the flags that name the whole cluster."""
        initial_cluster = ",".join(f"{name}={url}" for name, url in self._urls.items())
        for member in members:
            member.flags |= {
                "initial-cluster": initial_cluster,
                "initial-cluster-state": state,
                "initial-advertise-peer-urls": self._urls[member.name],
            }

    def member(self, name: str) -> Server:
        return next(member for member in self.members if member.name == name)

    @property
    def addresses(self) -> list[str]:
        """The client addresses of all members."""
        return [member.address for member in self.members]

    @property
    def running(self) -> list[Server]:
        return [member for member in self.members if member.running]

    def start(self) -> None:
        """Starts every member that does not run and returns when all can serve clients."""
        for member in self.members:
            if not member.running:
                member.launch()
        for member in self.members:
            try:
                wait_until(member.is_ready, f"{member.name} of {self.kind.value} to be ready")
            except TimeoutError as error:
                raise TimeoutError(f"{error}\n{member.log_tail()}") from None

    def statuses(self, timeout_s: float = ASK_TIMEOUT_S) -> dict[str, MemberStatus]:
        """What each running member that answers says."""
        found = {}
        for member in self.running:
            if not member.suspended:
                with contextlib.suppress(OSError, RefusedError):
                    found[member.name] = status(member, timeout_s)
        return found

    def leader(self, timeout_s: float = ASK_TIMEOUT_S) -> Server | None:
        """The member that says it leads, at the highest term when several do (one of them cut off), or None."""
        leaders = [
            (said.raft_term, name)
            for name, said in self.statuses(timeout_s).items()
            if said.leader == said.member_id and said.leader
        ]
        return self.member(max(leaders)[1]) if leaders else None

    def wait_for_leader(self, accept: Callable[[Server], bool] = lambda _: True) -> Server:
        """A leader that is accepted, which a majority of all members agrees on."""
        found: list[Server] = []

        def agreed() -> bool:
            statuses = self.statuses()
            for name, said in statuses.items():
                votes = sum(other.leader == said.member_id for other in statuses.values())
                if votes > len(self.members) // 2 and accept(self.member(name)):
                    found.append(self.member(name))
            return bool(found)

        wait_until(agreed, f"a leader of {self.kind.value}'s members", READY_TIMEOUT_S)
        return found[0]

    def move_leader(self, target: Server, timeout_s: float = ASK_TIMEOUT_S) -> None:
        """Asks the leader to hand on to `target`; raises as `ask`."""
        leader = self.leader()
        if leader is None:
            raise RefusedError(14, "no member leads")
        ask(
            leader.address,
            "/v3/maintenance/transfer-leadership",
            {"targetID": str(status(target).member_id)},
            timeout_s,
        )

    def replace(self, member: Server, retry_s: float = READY_TIMEOUT_S, *, wait: bool = True) -> None:
        """Removes a member through another, wipes its data, adds it anew and starts it: it joins with nothing.

        Without `wait` it may still be on its way when this returns.
        """
        others = [other for other in self.running if other is not member]
        via = others[0]
        url = self._urls[member.name]
        if member.running:
            member.kill()

        def accepted(path: str, request: Mapping[str, Any]) -> Callable[[], bool]:
            def try_once() -> bool:
                try:
                    ask(via.address, path, request, 10.0)
                except (RefusedError, OSError):  # "unhealthy cluster" until all links have stood for 5 s
                    return False
                return True

            return try_once

        listed = ask(via.address, "/v3/cluster/member/list", {})["members"]
        for known in listed:
            if url in known["peerURLs"]:
                wait_until(accepted("/v3/cluster/member/remove", {"ID": known["ID"]}), "the remove", retry_s)
        member.wipe()
        wait_until(accepted("/v3/cluster/member/add", {"peerURLs": [url]}), "the add", retry_s)
        self._describe([member], "existing")
        if wait:
            member.start()
        else:
            member.launch()

    def stop(self) -> None:
        """Ends all members gracefully, one after the other."""
        for member in self.running:
            member.stop()

    def close(self) -> None:
        """Ends what still runs and gives the ports back."""
        with contextlib.ExitStack() as stack:
            for port in self._relay_ports:
                stack.callback(port.release)
            if self.links is not None:
                stack.callback(self.links.close)
            for member in self.members:
                stack.callback(member.close)
            if self.links is not None:
                self.links.heal()


@contextlib.contextmanager
def running_cluster(
    kind: Kind,
    size: int = 3,
    flags: Mapping[str, str] | None = None,
    *,
    relayed: bool = False,
    directory: Path | None = None,
) -> Iterator[Cluster]:
    """A cluster whose members all serve, on empty temporary data unless a directory is given; ended on exit.

    `relayed`: the members speak through `Cluster.links`, which can be blocked.
    """
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{kind.value}-cluster-")))
        cluster = Cluster(kind, directory, size, flags, relayed=relayed)
        stack.callback(cluster.close)
        cluster.start()
        yield cluster
