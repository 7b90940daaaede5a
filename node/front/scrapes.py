"""Requests for /metrics: they ask the member's processes, and the page is written beside the loop (HT16)."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from typing import Final

from kvorum import API_VERSION
from node.front.exchange import Request
from node.front.member_view import MemberView, States
from node.front.metrics import member_figures
from node.front.side_thread import RunAside
from node.stats import Figures

CONTENT_TYPE: Final = (b"Content-Type", b"text/plain; version=0.0.4; charset=utf-8")

GZIP_LEVEL: Final = 1  # a page of 120 KiB: 6 KiB in 0.3 ms; level 9 takes ten times that and saves 1 KiB

_ZERO_WEIGHT: Final = re.compile(r"q\s*=\s*0(\.0*)?")


class Scrapes:
    """The scrapes under way.

    One page is made at a time, for all who had asked when its gathering began: so nobody gets figures older than his
    request, and a hundred scrapers cost what two do.
    """

    def __init__(self, member: MemberView, own_figures: Callable[[], Figures], run_aside: RunAside) -> None:
        """`own_figures` gives what only this process knows and does not add up over processes."""
        self._member = member
        self._own_figures = own_figures
        self._run_aside = run_aside
        self._waiting: list[Request] = []
        self._busy = False

    def add(self, request: Request) -> None:
        """Answers the request, now or later."""
        self._waiting.append(request)
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        self._busy = True
        requests, self._waiting = self._waiting, []
        self._member.gather(lambda states: self._on_states(requests, states))

    def _on_states(self, requests: list[Request], states: States) -> None:
        member = self._member
        cluster = member.cluster_version()
        figures = {
            **member_figures(
                member_id=member.member_id,
                api_version=API_VERSION,
                cluster_version=cluster.rpartition(".")[0] if cluster else None,
            ),
            **self._own_figures(),
        }
        by_process = {process: state["metrics"] for process, state in states.items()}
        zipped = [takes_gzip(request.header(b"accept-encoding") or "") for request in requests]

        def work() -> tuple[bytes, bytes]:
            # here, for the sake of members that nobody scrapes: see metrics_page
            from node.front.metrics_page import render
            from node.front.process_figures import figures_of

            page = render(by_process, member.processes(), {**figures, **figures_of(member.pids())})
            return page, gzip.compress(page, GZIP_LEVEL, mtime=0) if any(zipped) else b""

        self._run_aside(work, lambda pages: self._answer(requests, zipped, *pages))

    def _answer(self, requests: list[Request], zipped: list[bool], plain: bytes, packed: bytes) -> None:
        for request, wants_packed in zip(requests, zipped, strict=True):
            if wants_packed:
                request.respond(200, ((b"Content-Encoding", b"gzip"), CONTENT_TYPE), packed)
            else:
                request.respond(200, (CONTENT_TYPE,), plain)
        self._busy = False
        if self._waiting:
            self._begin()


def takes_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header allows gzip (RFC 9110, section 12.5.3)."""
    for part in accept_encoding.split(","):
        coding, *parameters = [piece.strip().lower() for piece in part.split(";")]
        if coding in ("gzip", "*"):
            return not any(_ZERO_WEIGHT.fullmatch(parameter) for parameter in parameters)
    return False
