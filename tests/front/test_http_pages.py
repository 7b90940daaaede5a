"""The plain pages (behaviour HT1-HT24)."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from kvorum.pb.rpc_pb2 import AlarmType
from node.frames import Process
from node.front.access import Access
from node.front.health_checks import Done, HealthChecks
from node.front.http_pages import ClientHttp, MetricsHttp, Pages
from node.front.json_gateway import Gateway
from node.front.scrapes import takes_gzip
from tests.front.http_fake import FakeClock, FakeExchange, run_inline

TEXT = "text/plain; charset=utf-8"
LIMIT_S = 7.0


class FakeMember:
    """A member whose probes answer at once as they are told, or, with `silent`, not at all."""

    member_id = 0x8E9E05C52164694D

    def __init__(self) -> None:
        self.active: Sequence[int] | None = ()
        self.leader = True
        self.learner = False
        self.read_errors: dict[bool, str] = {}
        self.silent: set[str] = set()
        self.probed: list[str] = []
        self.held: list[Callable[[], None]] = []
        self.version: str | None = "3.7.0"
        self.states: dict[int, dict[str, Any]] = {
            Process.RAFT: {"term": 2, "leader": self.member_id, "committed": 10, "metrics": {}},
            Process.APPLY: {"applied": 9, "metrics": {"etcd_mvcc_put_total": 3}},
        }

    def range(self, serializable: bool, done: Done) -> None:
        name = "serializable" if serializable else "linearizable"
        self.probed.append(name)
        answer = self.read_errors.get(serializable)
        if name in self.silent:
            self.held.append(lambda: done(answer))
        else:
            done(answer)

    def alarms(self, done: Callable[[Sequence[int] | None], None]) -> None:
        self.probed.append("alarms")
        if "alarms" not in self.silent:
            done(self.active)

    def has_leader(self) -> bool:
        return self.leader

    def is_learner(self) -> bool:
        return self.learner

    def cluster_version(self) -> str | None:
        return self.version

    def gather(self, done: Callable[[Mapping[int, Mapping[str, Any]]], None]) -> None:
        done(self.states)

    def processes(self) -> Sequence[int]:
        return (Process.RAFT, Process.APPLY, Process.WATCH)

    def pids(self) -> Sequence[int]:
        return ()

    def command_line(self) -> Sequence[str]:
        return ("kvorum", "--name", "a")


class World:
    """A client listener and a metrics listener of one front."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.member = FakeMember()
        self.pages = Pages(self.member, HealthChecks(self.member, self.clock.call_later, LIMIT_S), run_inline)
        gateway = Gateway(
            unary={}, streams={}, call_later=self.clock.call_later, run_aside=run_inline, message_bytes=1000
        )
        self.client = ClientHttp(Access(), self.pages, gateway)
        self.metrics = MetricsHttp(self.pages)

    def ask(self, target: str, method: str = "GET", headers: dict[str, str] | None = None) -> FakeExchange:
        exchange = FakeExchange(method, target, headers)
        self.client.handle(exchange)
        return exchange


@pytest.fixture
def world() -> World:
    return World()


def test_ht1_health(world: World) -> None:
    exchange = world.ask("/health")
    assert (exchange.status, exchange.reply) == (200, b'{"health":"true","reason":""}')
    assert world.member.probed == ["alarms", "linearizable"]
    assert not world.clock.running


@pytest.mark.parametrize(
    ("alarms", "reason"),
    [
        ([AlarmType.NOSPACE], "ALARM NOSPACE"),
        ([AlarmType.CORRUPT, AlarmType.NOSPACE], "ALARM CORRUPT"),
        ([9], "ALARM UNKNOWN"),
    ],
)
def test_ht2_alarms(world: World, alarms: list[int], reason: str) -> None:
    world.member.active = alarms
    exchange = world.ask("/health")
    assert (exchange.status, exchange.reply) == (503, b'{"health":"false","reason":"%s"}\n' % reason.encode())
    assert not world.clock.running


def test_ht2_no_leader(world: World) -> None:
    world.member.leader = False
    exchange = world.ask("/health")
    assert (exchange.status, exchange.json["reason"]) == (503, "RAFT NO LEADER")


def test_ht2_a_read_that_fails(world: World) -> None:
    world.member.read_errors = {False: "etcdserver: leader changed"}
    exchange = world.ask("/health")
    assert (exchange.status, exchange.json["reason"]) == (503, "RANGE ERROR:etcdserver: leader changed")


def test_ht2_the_first_reason_is_given(world: World) -> None:
    world.member.leader = False
    world.member.read_errors = {False: "x"}
    assert world.ask("/health").json["reason"] == "RAFT NO LEADER"
    world.member.active = [AlarmType.NOSPACE]
    assert world.ask("/health").json["reason"] == "ALARM NOSPACE"


@pytest.mark.parametrize("silent", ["linearizable", "alarms"])
def test_ht2_a_probe_that_stays_silent(world: World, silent: str) -> None:
    world.member.silent = {silent}
    exchange = world.ask("/health")
    assert exchange.status is None
    (timer,) = world.clock.running
    assert timer.delay_s == LIMIT_S
    timer.fire()
    assert exchange.json == {"health": "false", "reason": "RANGE ERROR:etcdserver: request timed out"}
    assert exchange.finished


def test_an_answer_after_the_time_limit_is_dropped(world: World) -> None:
    world.member.silent = {"linearizable"}
    exchange = world.ask("/health")
    world.clock.running[0].fire()
    world.member.held[0]()
    assert exchange.status == 503


def test_ht2_alarms_that_cannot_be_told(world: World) -> None:
    world.member.active = None
    assert world.ask("/health").status == 503


def test_ht3_excluded_alarms(world: World) -> None:
    world.member.active = [AlarmType.NOSPACE, AlarmType.CORRUPT]
    assert world.ask("/health?exclude=NOSPACE").json["reason"] == "ALARM CORRUPT"
    assert world.ask("/health?exclude=NOSPACE&exclude=CORRUPT").status == 200
    assert world.ask("/health?exclude=nospace").json["reason"] == "ALARM NOSPACE"


def test_ht3_serializable(world: World) -> None:
    world.member.leader = False
    assert world.ask("/health?serializable=true").status == 200
    assert world.member.probed == ["alarms", "serializable"]
    assert world.ask("/health?serializable=1").json["reason"] == "RAFT NO LEADER"
    assert world.ask("/health?anything=else").json["reason"] == "RAFT NO LEADER"


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/readyz/non_learner", "/version", "/debug/vars"])
def test_ht4_other_methods(world: World, path: str, method: str) -> None:
    exchange = world.ask(path, method)
    assert (exchange.status, exchange.reply) == (405, b"Method Not Allowed\n")
    assert exchange.reply_headers["allow"] == "GET"
    assert exchange.reply_headers["content-type"] == TEXT


def test_ht5_content_type(world: World) -> None:
    assert world.ask("/health").reply_headers["content-type"] == TEXT
    world.member.leader = False
    assert world.ask("/health").reply_headers["content-type"] == TEXT


def test_health_is_counted(world: World) -> None:
    world.ask("/health")
    world.ask("/health")
    world.member.leader = False
    world.ask("/health")
    assert (world.pages.health_success, world.pages.health_failures) == (2, 1)


@pytest.mark.parametrize(
    ("path", "checks"),
    [
        ("/livez", ["serializable_read"]),
        ("/readyz", ["data_corruption", "serializable_read", "linearizable_read", "non_learner"]),
    ],
)
def test_ht6_and_ht7_all_is_well(world: World, path: str, checks: list[str]) -> None:
    exchange = world.ask(path)
    assert (exchange.status, exchange.reply) == (200, b"ok\n")
    assert exchange.reply_headers["content-type"] == TEXT
    lines = world.ask(path + "?verbose").reply.decode()
    assert lines == "".join(f"[+]{check} ok\n" for check in checks) + "ok\n"
    assert world.ask(path + "?verbose=false").reply.decode() == lines
    assert not world.clock.running


def test_ht8_a_failure_always_lists(world: World) -> None:
    world.member.read_errors = {False: "etcdserver: request timed out"}
    exchange = world.ask("/readyz")
    assert exchange.status == 503
    assert exchange.reply.decode() == (
        "[+]data_corruption ok\n"
        "[+]serializable_read ok\n"
        "[-]linearizable_read failed: etcdserver: request timed out\n"
        "[+]non_learner ok\n"
    )
    assert world.ask("/livez").status == 200


def test_ht8_probes_that_stay_silent(world: World) -> None:
    world.member.silent = {"linearizable", "alarms"}
    exchange = world.ask("/readyz")
    assert exchange.status is None
    for timer in world.clock.running:
        timer.fire()
    assert exchange.status == 503
    assert exchange.reply.count(b"failed: etcdserver: request timed out\n") == 2


@pytest.mark.parametrize(
    "path",
    ["/livez/serializable_read"]
    + [f"/readyz/{name}" for name in ("data_corruption", "serializable_read", "linearizable_read", "non_learner")],
)
def test_ht9_one_check(world: World, path: str) -> None:
    assert world.ask(path).reply == b"ok\n"
    name = path.rpartition("/")[2]
    assert world.ask(path + "?verbose").reply == b"[+]%s ok\nok\n" % name.encode()


@pytest.mark.parametrize("path", ["/livez/linearizable_read", "/readyz/nope", "/readyz/", "/livez/serializable_read/"])
def test_ht9_an_unknown_check(world: World, path: str) -> None:
    assert world.ask(path).status == 404


def test_ht9_exclude_is_ignored_for_one_check(world: World) -> None:
    world.member.learner = True
    exchange = world.ask("/readyz/non_learner?exclude=non_learner")
    assert (exchange.status, exchange.reply) == (503, b"[-]non_learner failed: not supported for learner\n")


def test_ht10_exclude(world: World) -> None:
    world.member.learner = True
    world.member.active = [AlarmType.CORRUPT]
    assert world.ask("/readyz?exclude=non_learner").status == 503
    assert world.ask("/readyz?exclude=non_learner&exclude=data_corruption&exclude=unknown").reply == b"ok\n"
    assert world.ask("/livez?exclude=serializable_read").reply == b"ok\n"


def test_ht11_texts(world: World) -> None:
    world.member.learner = True
    world.member.active = [AlarmType.NOSPACE, AlarmType.CORRUPT]
    world.member.read_errors = {True: "first", False: "second"}
    assert world.ask("/readyz").reply.decode() == (
        "[-]data_corruption failed: alarm activated: CORRUPT\n"
        "[-]serializable_read failed: first\n"
        "[-]linearizable_read failed: second\n"
        "[-]non_learner failed: not supported for learner\n"
    )


def test_ht12_nospace_fails_only_health(world: World) -> None:
    world.member.active = [AlarmType.NOSPACE]
    assert [world.ask(path).status for path in ("/livez", "/readyz", "/health")] == [200, 200, 503]


def test_checks_are_counted_by_outcome(world: World) -> None:
    world.ask("/livez")
    world.member.read_errors = {True: "x"}
    world.ask("/livez")
    counts = world.pages.figures()["etcd_server_healthchecks_total"]
    assert counts == [[["serializable_read", "success", "livez"], 1], [["serializable_read", "error", "livez"], 1]]
    assert b'etcd_server_healthcheck{name="serializable_read",type="livez"} 0.0\n' in world.ask("/metrics").reply


def test_ht15_version(world: World) -> None:
    exchange = world.ask("/version")
    assert exchange.reply == b'{"etcdserver":"3.7.0","etcdcluster":"3.7.0","storage":"3.7.0"}'
    assert exchange.reply_headers["content-type"] == "application/json"
    world.member.version = None
    assert world.ask("/version").json == {"etcdserver": "3.7.0", "etcdcluster": "not_decided", "storage": "unknown"}


def test_ht16_metrics(world: World) -> None:
    exchange = world.ask("/metrics")
    assert exchange.status == 200
    assert exchange.reply_headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "content-encoding" not in exchange.reply_headers
    for line in (
        b"etcd_mvcc_put_total 3.0",
        b'etcd_server_id{server_id="8e9e05c52164694d"} 1.0',
        b'etcd_server_version{server_version="3.7.0"} 1.0',
        b'etcd_cluster_version{cluster_version="3.7"} 1.0',
        b'kvorum_process_up{process="watch"} 0.0',
    ):
        assert line + b"\n" in exchange.reply


def test_ht16_metrics_zipped_when_asked(world: World) -> None:
    exchange = world.ask("/metrics", headers={"Accept-Encoding": "deflate, gzip;q=1.0"})
    assert exchange.reply_headers["content-encoding"] == "gzip"
    assert gzip.decompress(exchange.reply) == world.ask("/metrics").reply


@pytest.mark.parametrize(
    ("accept", "zipped"),
    [
        *(("", False), ("gzip", True), ("*", True), ("identity", False), ("gzip;q=0", False), ("GZIP ; Q=0.5", True)),
        *(("gzip;q=0.000", False), ("br, deflate", False), ("gzipped", False), ("br,gzip", True)),
    ],
)
def test_ht16_accept_encoding(accept: str, zipped: bool) -> None:
    assert takes_gzip(accept) == zipped


def test_ht17_debug_vars(world: World) -> None:
    exchange = world.ask("/debug/vars")
    assert exchange.reply_headers["content-type"] == "application/json; charset=utf-8"
    assert exchange.json["cmdline"] == ["kvorum", "--name", "a"]
    assert exchange.json.keys() == {"cmdline", "file_descriptor_limit", "memstats", "raft.status"}
    assert exchange.json["raft.status"] == {
        "id": "8e9e05c52164694d",
        "term": 2,
        "commit": 10,
        "lead": "8e9e05c52164694d",
        "raftState": "StateLeader",
        "applied": 9,
    }
    world.member.states = {}
    assert world.ask("/debug/vars").json["raft.status"] == {}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/config/local/log", "/v2/keys", "/v2/members", "/v3alpha/kv/range", "/v3x", "/health/", "/version/"),
        *("", "//health", "/debug/pprof/", "http://[::1/health"),
    ],
)
def test_ht18_to_ht20_everything_else_is_not_found(world: World, path: str, method: str) -> None:
    exchange = world.ask(path, method)
    assert (exchange.status, exchange.reply) == (404, b"404 page not found\n")
    assert exchange.reply_headers["content-type"] == TEXT


def test_j17_below_v3_the_gateway_answers(world: World) -> None:
    assert world.ask("/v3/nope").json == {"code": 5, "message": "Not Found"}
    assert world.ask("/v3beta/nope", "POST").json == {"code": 5, "message": "Not Found"}


def test_j20_without_the_gateway(world: World) -> None:
    client = ClientHttp(Access(), world.pages, None)
    for path, status in (("/v3/kv/range", 404), ("/v3/", 404), ("/health", 200)):
        exchange = FakeExchange("GET", path)
        client.handle(exchange)
        assert exchange.status == status


def test_j28_pages_carry_the_cors_headers(world: World) -> None:
    for path in ("/health", "/nowhere", "/metrics", "/v3/nope"):
        assert world.ask(path).reply_headers["access-control-allow-origin"] == "*"
    assert world.ask("/nowhere", "OPTIONS").status == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/metrics", 200), ("/health", 200), ("/livez", 200), ("/readyz", 200), ("/readyz/non_learner", 200)),
        *(("/version", 404), ("/debug/vars", 404), ("/v3/kv/range", 404), ("/", 404)),
    ],
)
def test_ht23_a_metrics_listener(world: World, path: str, status: int) -> None:
    exchange = FakeExchange("GET", path, {"Origin": "http://a.b"})
    world.metrics.handle(exchange)
    assert exchange.status == status
    assert not any(name.startswith("access-control") for name in exchange.reply_headers)


def test_ht24_health_and_metrics_are_on_the_client_listener_too(world: World) -> None:
    assert [world.ask(path).status for path in ("/metrics", "/health")] == [200, 200]
