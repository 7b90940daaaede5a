"""The plain pages of a member: /health, /livez, /readyz, /version, /metrics, /debug/vars (HT1-HT24).

`ClientHttp` serves a client listener (access rules, JSON gateway, pages), `MetricsHttp` one of --listen-metrics-urls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from kvorum import API_VERSION
from node.frames import Process
from node.front.access import Access
from node.front.exchange import JSON, TEXT, Exchange, Request
from node.front.health_checks import LIVEZ, READYZ, Check, HealthChecks, Outcome
from node.front.json_gateway import BETA_PREFIX, PREFIX, Gateway
from node.front.member_view import MemberView, States
from node.front.scrapes import Scrapes
from node.front.side_thread import RunAside
from node.stats import Figures

HEALTHY: Final = b'{"health":"true","reason":""}'


class Pages:
    """The pages, whatever listener they are asked on, and what they count."""

    def __init__(self, member: MemberView, checks: HealthChecks, run_aside: RunAside) -> None:
        self._member = member
        self._checks = checks
        self._run_aside = run_aside
        self._scrapes = Scrapes(member, self._last_checks, run_aside)
        self.health_success = 0
        self.health_failures = 0
        self._counts: dict[tuple[str, str, str], int] = {}  # (name, status, type)
        self._last: dict[tuple[str, str], int] = {}  # (name, type) -> 1 when it passed
        self._health_pages: dict[str, Callable[[Request], None]] = {
            "/health": self._health,
            "/metrics": self._metrics,
            "/livez": lambda request: self._checked(request, "livez", LIVEZ),
            "/readyz": lambda request: self._checked(request, "readyz", READYZ),
        }
        for check in LIVEZ:
            self._health_pages[f"/livez/{check}"] = self._single("livez", check)
        for check in READYZ:
            self._health_pages[f"/readyz/{check}"] = self._single("readyz", check)
        self._pages = {**self._health_pages, "/version": self._version, "/debug/vars": self._vars}

    def figures(self) -> Figures:
        """The counts of this front's pages, for the metrics."""
        return {
            "etcd_server_health_success": self.health_success,
            "etcd_server_health_failures": self.health_failures,
            "etcd_server_healthchecks_total": [[list(labels), count] for labels, count in self._counts.items()],
        }

    def _last_checks(self) -> Figures:
        return {"etcd_server_healthcheck": [[list(labels), passed] for labels, passed in self._last.items()]}

    def serve(self, request: Request, *, metrics_listener: bool = False) -> None:
        """Answers a request; on a metrics listener only health and metrics are there (HT23)."""
        page = (self._health_pages if metrics_listener else self._pages).get(request.path)
        if page is None:
            request.not_found()
        else:
            page(request)

    def _health(self, request: Request) -> None:
        if not request.only("GET"):
            return

        def done(reason: Outcome) -> None:
            if reason is None:
                self.health_success += 1
                request.respond(200, (TEXT,), HEALTHY)
            else:
                self.health_failures += 1
                body = orjson.dumps({"health": "false", "reason": reason}, option=orjson.OPT_APPEND_NEWLINE)
                request.respond(503, (TEXT,), body)

        self._checks.health(
            excluded_alarms=request.query.get("exclude", ()),
            serializable=request.query.get("serializable", [""])[0] == "true",
            done=done,
        )

    def _single(self, kind: str, check: Check) -> Callable[[Request], None]:
        return lambda request: self._checked(request, kind, (check,), excludable=False)

    def _checked(self, request: Request, kind: str, checks: Sequence[Check], *, excludable: bool = True) -> None:
        if not request.only("GET"):
            return
        excluded = request.query.get("exclude", ()) if excludable else ()

        def done(outcomes: dict[Check, Outcome]) -> None:
            lines = []
            for check, failure in outcomes.items():
                lines.append(f"[+]{check} ok\n" if failure is None else f"[-]{check} failed: {failure}\n")
                self._count(kind, check, failure)
            if any(failure is not None for failure in outcomes.values()):
                request.text(503, "".join(lines))
            else:
                request.text(200, ("".join(lines) if "verbose" in request.query else "") + "ok\n")

        self._checks.run([check for check in checks if check not in excluded], done)

    def _count(self, kind: str, check: Check, failure: Outcome) -> None:
        passed = failure is None
        labels = (check.value, "success" if passed else "error", kind)
        self._counts[labels] = self._counts.get(labels, 0) + 1
        self._last[check.value, kind] = int(passed)

    def _version(self, request: Request) -> None:
        if request.only("GET"):
            cluster = self._member.cluster_version()
            versions = {
                "etcdserver": API_VERSION,
                "etcdcluster": cluster or "not_decided",
                "storage": API_VERSION if cluster else "unknown",
            }
            request.respond(200, (JSON,), orjson.dumps(versions))

    def _metrics(self, request: Request) -> None:
        self._scrapes.add(request)

    def _vars(self, request: Request) -> None:
        if not request.only("GET"):
            return

        member = self._member

        def on_states(states: States) -> None:
            def work() -> bytes:
                # with the library: see metrics_page
                from node.front.process_figures import figures_of

                return debug_vars(member.member_id, member.command_line(), figures_of(member.pids()), states)

            self._run_aside(work, done)

        def done(page: bytes) -> None:
            request.respond(200, ((b"Content-Type", b"application/json; charset=utf-8"),), page)

        member.gather(on_states)


def debug_vars(member_id: int, command_line: Sequence[str], figures: Figures, states: States) -> bytes:
    """The page /debug/vars; `figures` are those of `process_figures`."""
    values = {
        "cmdline": list(command_line),
        "file_descriptor_limit": figures.get("os_fd_limit", 0),
        "memstats": {
            "Alloc": figures.get("process_resident_memory_bytes", 0),
            "Sys": figures.get("process_virtual_memory_bytes", 0),
        },
        "raft.status": raft_status(member_id, states),
    }
    # one line per variable, as expvar writes it
    lines = [b"%s: %s" % (orjson.dumps(name), orjson.dumps(value)) for name, value in values.items()]
    return b"{\n" + b",\n".join(lines) + b"\n}\n"


def raft_status(member_id: int, states: States) -> dict[str, Any]:
    """The variable raft.status, from the states of the raft and the apply process; empty without the first."""
    raft = states.get(Process.RAFT)
    if raft is None:
        return {}
    leader = raft["leader"]
    return {
        "id": f"{member_id:x}",
        "term": raft["term"],
        "commit": raft["committed"],
        "lead": f"{leader:x}",
        "raftState": "StateLeader" if leader == member_id else "StateFollower" if leader else "StateCandidate",
        "applied": states.get(Process.APPLY, {}).get("applied", 0),
    }


class ClientHttp:
    """HTTP/1.1 on a client listener. Without a gateway (--enable-grpc-gateway=false) /v3 is not found (J20)."""

    def __init__(self, access: Access, pages: Pages, gateway: Gateway | None) -> None:
        self._access = access
        self._pages = pages
        self._gateway = gateway

    def handle(self, exchange: Exchange) -> None:
        """Serves one request."""
        request = self._access.admit(exchange)
        if request is None:
            return
        if self._gateway is not None and request.path.startswith((PREFIX, BETA_PREFIX)):
            self._gateway.handle(request)
        else:
            self._pages.serve(request)


class MetricsHttp:
    """HTTP/1.1 on a listener of --listen-metrics-urls: no access rules, no gateway (HT23)."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def handle(self, exchange: Exchange) -> None:
        """Serves one request."""
        self._pages.serve(Request(exchange), metrics_listener=True)
