"""Unary calls over JSON (behaviour J9-J22); the marshalling itself is in test_json_messages."""

from typing import Any

import orjson
import pytest

from kvorum import errors
from kvorum.errors import Code
from kvorum.pb import rpc_pb2
from kvorum.pb.rpc_pb2 import PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader
from node.front.access import Access
from node.front.exchange import Fields
from node.front.json_call import ASIDE_BYTES, metadata_of
from node.front.json_gateway import Gateway
from node.front.json_routes import METHODS, PATHS, ROUTES
from node.front.side_thread import RunAside
from tests.front.http_fake import FakeClock, FakeExchange, FakeUnary, HeldThread, run_inline

MESSAGE_BYTES = 1000
HEADER = ResponseHeader(cluster_id=13455796455940752355, member_id=443629905751424238, revision=2, raft_term=2)
JSON_REPLY = {"content-type": "application/json", "grpc-metadata-content-type": "application/grpc"}
JSON_ERROR = {"content-type": "application/json"}


class World:
    """A gateway with a Put and a Range behind it."""

    def __init__(self, run_aside: RunAside = run_inline) -> None:
        self.clock = FakeClock()
        self.put = FakeUnary(PutRequest)
        self.put.answer = PutResponse(header=HEADER)
        self.range = FakeUnary(RangeRequest)
        self.gateway = Gateway(
            unary={"/etcdserverpb.KV/Put": self.put, "/etcdserverpb.KV/Range": self.range},
            streams={},
            call_later=self.clock.call_later,
            run_aside=run_aside,
            message_bytes=MESSAGE_BYTES,
        )

    def begin(self, target: str, *, method: str = "POST", headers: dict[str, str] | None = None) -> FakeExchange:
        exchange = FakeExchange(method, target, headers)
        request = Access(cors=["http://nobody"]).admit(exchange)
        assert request is not None
        self.gateway.handle(request)
        return exchange

    def ask(self, target: str, body: bytes = b"", **options: Any) -> FakeExchange:
        exchange = self.begin(target, **options)
        exchange.body(body)
        return exchange


@pytest.fixture
def world() -> World:
    return World()


def test_a_put(world: World) -> None:
    exchange = world.ask("/v3/kv/put", b'{"key":"Zm9v","value":"YmFy"}')
    assert world.put.asked == PutRequest(key=b"foo", value=b"bar")
    assert exchange.status == 200
    assert exchange.reply == (
        b'{"header":{"cluster_id":"13455796455940752355","member_id":"443629905751424238",'
        b'"revision":"2","raft_term":"2"}}'
    )


def test_a_body_in_many_pieces(world: World) -> None:
    exchange = world.begin("/v3/kv/put")
    exchange.body(*[bytes((octet,)) for octet in b'{"key":"Zm9v"}'])
    assert world.put.asked == PutRequest(key=b"foo")
    assert exchange.status == 200


@pytest.mark.parametrize("body", [b"", b"  \r\n", b"{}"])
def test_j9_an_empty_body_is_an_empty_object(world: World, body: bytes) -> None:
    assert world.ask("/v3/kv/put", body).status == 200
    assert world.put.asked == PutRequest()


@pytest.mark.parametrize("rest", [b'{"key":"eA=="}', b" xyz", b'{"key":'])
def test_j10_what_follows_the_first_object_is_ignored(world: World, rest: bytes) -> None:
    assert world.ask("/v3/kv/put", b'{"key":"Zm9v"}' + rest).status == 200
    assert world.put.asked == PutRequest(key=b"foo")


@pytest.mark.parametrize(
    "body",
    [b"null", b"[]", b"x", b'{"key":"Zm9v"', b'{"key":}', b'{"key":"!"}', b'{"lease":"x"}', b'{"a":"\xff"}', b"{,}"],
)
def test_j11_bad_json_is_an_invalid_argument(world: World, body: bytes) -> None:
    exchange = world.ask("/v3/kv/put", body)
    assert exchange.status == 400
    assert exchange.reply_headers == JSON_ERROR
    assert exchange.json["code"] == 3
    assert exchange.json["message"]
    assert not world.put.calls


@pytest.mark.parametrize("content_type", ["text/xml", "application/x-www-form-urlencoded", "application/json"])
def test_j12_the_content_type_of_the_request_is_ignored(world: World, content_type: str) -> None:
    assert world.ask("/v3/kv/put", b"{}", headers={"Content-Type": content_type}).status == 200


def test_j13_reply_headers_and_no_newline(world: World) -> None:
    exchange = world.ask("/v3/kv/put", b"{}")
    assert exchange.reply_headers == JSON_REPLY
    assert not exchange.reply.endswith(b"\n")
    assert not exchange.chunked


def test_j14_error_body(world: World) -> None:
    world.put.answer = errors.EMPTY_KEY
    exchange = world.ask("/v3/kv/put", b"{}")
    assert exchange.status == 400
    assert exchange.reply == b'{"code":3,"message":"etcdserver: key is not provided"}'
    assert exchange.reply_headers == JSON_ERROR


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.CANCELLED, 499),
        (Code.UNKNOWN, 500),
        (Code.INVALID_ARGUMENT, 400),
        (Code.DEADLINE_EXCEEDED, 504),
        (Code.NOT_FOUND, 404),
        (Code.ALREADY_EXISTS, 409),
        (Code.PERMISSION_DENIED, 403),
        (Code.RESOURCE_EXHAUSTED, 429),
        (Code.FAILED_PRECONDITION, 400),
        (Code.ABORTED, 409),
        (Code.OUT_OF_RANGE, 400),
        (Code.UNIMPLEMENTED, 501),
        (Code.INTERNAL, 500),
        (Code.UNAVAILABLE, 503),
        (Code.DATA_LOSS, 500),
        (Code.UNAUTHENTICATED, 401),
        (99, 500),
    ],
)
def test_j15_status_by_code(world: World, code: int, status: int) -> None:
    world.put.answer = (code, "text")
    exchange = world.ask("/v3/kv/put", b"{}")
    assert (exchange.status, exchange.json) == (status, {"code": code, "message": "text"})


def test_j15_unauthenticated_says_so_in_a_header(world: World) -> None:
    world.put.answer = errors.INVALID_AUTH_TOKEN
    exchange = world.ask("/v3/kv/put", b"{}")
    assert exchange.reply_headers["www-authenticate"] == "etcdserver: invalid auth token"


def test_j15_no_text_can_break_the_header(world: World) -> None:
    world.put.answer = (Code.UNAUTHENTICATED, "a\r\nset-cookie: é")
    assert world.ask("/v3/kv/put", b"{}").reply_headers["www-authenticate"] == "a set-cookie: ?"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "PATCH"])
def test_j16_another_method(world: World, method: str) -> None:
    exchange = world.ask("/v3/kv/put", method=method)
    assert (exchange.status, exchange.reply) == (501, b'{"code":12,"message":"Method Not Allowed"}')


@pytest.mark.parametrize("path", ["/v3/kv/nope", "/v3/", "/v3/kv/put/", "/v3/kv/rangestream", "/v3beta/nope"])
def test_j17_an_unknown_path(world: World, path: str) -> None:
    exchange = world.ask(path)
    assert (exchange.status, exchange.reply) == (404, b'{"code":5,"message":"Not Found"}')


@pytest.mark.parametrize("path", ["/v3beta/kv/put", "/v3/kv/put?key=eA==", "/v3/kv/%70ut", "http://h:1/v3/kv/put"])
def test_j18_other_forms_of_a_path(world: World, path: str) -> None:
    assert world.ask(path, b"{}").status == 200
    assert world.put.asked == PutRequest()


def test_j19_every_call_but_range_stream_has_its_paths() -> None:
    assert ROUTES["/v3/maintenance/hashkv"].path == "/etcdserverpb.Maintenance/HashKV"
    assert set(METHODS) - set(PATHS.values()) == {"/etcdserverpb.KV/RangeStream"}
    assert len(PATHS) == 51


def test_a_call_that_no_service_answers(world: World) -> None:
    exchange = world.ask("/v3/auth/user/add", b"{}")
    message = "unknown method UserAdd for service etcdserverpb.Auth"
    assert (exchange.status, exchange.json) == (501, {"code": 12, "message": message})
    assert world.ask("/v3/watch", b"{}").json["message"] == "unknown method Watch for service etcdserverpb.Watch"


def test_j21_and_j22_headers_become_metadata(world: World) -> None:
    headers = {
        "Authorization": "TOKEN",
        "Grpc-Metadata-Hasleader": "true",
        "Grpc-Metadata-Client-Api-Version": "3.7",
        "Cookie": "a=b",
        "Host": "127.0.0.1:2379",
    }
    world.ask("/v3/kv/put", b"{}", headers=headers)
    head = world.put.calls[0][2]
    assert head.metadata == {"authorization": ("TOKEN",), "hasleader": ("true",), "client-api-version": ("3.7",)}
    assert (head.path, head.authority) == ("/etcdserverpb.KV/Put", "127.0.0.1:2379")


@pytest.mark.parametrize(
    ("headers", "metadata"),
    [
        ([], {}),
        ([(b"grpc-metadata-", b"x")], {}),
        ([(b"grpc-metadata-a", b"1"), (b"grpc-metadata-a", b"2")], {"a": ("1", "2")}),
        ([(b"authorization", b"Bearer t")], {"authorization": ("Bearer t",)}),
    ],
)
def test_j22_metadata(headers: Fields, metadata: dict[str, Any]) -> None:
    assert dict(metadata_of(headers)) == metadata


def test_j22_grpc_timeout_sets_the_deadline(world: World) -> None:
    world.put.answer = None
    exchange = world.ask("/v3/kv/put", b"{}", headers={"Grpc-Timeout": "250m"})
    (timer,) = world.clock.running
    assert timer.delay_s == 0.25
    assert world.put.calls[0][2].timeout_s == 0.25
    timer.fire()
    assert (exchange.status, exchange.json) == (504, {"code": 4, "message": "context deadline exceeded"})
    sink, token, _, _ = world.put.calls[0]
    sink.reply(token, b"")  # too late, and nobody hears it


def test_j22_an_answer_ends_the_timer(world: World) -> None:
    world.ask("/v3/kv/put", b"{}", headers={"Grpc-Timeout": "1S"})
    assert world.clock.timers and not world.clock.running


@pytest.mark.parametrize("timeout", ["5x", "S", "-1S", "1.5S", "5"])
def test_j22_a_bad_timeout_is_refused(world: World, timeout: str) -> None:
    exchange = world.ask("/v3/kv/put", b"{}", headers={"Grpc-Timeout": timeout})
    assert (exchange.status, exchange.json) == (400, {"code": 3, "message": f"invalid grpc-timeout: {timeout}"})
    assert not world.put.calls


def test_j22_a_binary_header_that_is_no_base64_is_refused(world: World) -> None:
    exchange = world.ask("/v3/kv/put", b"{}", headers={"Grpc-Metadata-X-Bin": "!!!"})
    assert (exchange.status, exchange.json) == (400, {"code": 3, "message": "invalid binary header x-bin"})
    assert not world.put.calls


def test_an_answer_may_come_later(world: World) -> None:
    world.put.answer = None
    exchange = world.ask("/v3/kv/put", b"{}")
    assert not exchange.finished
    sink, token, _, _ = world.put.calls[0]
    sink.fail(token, *errors.TIMEOUT)
    assert (exchange.status, exchange.json["code"]) == (503, 14)


def test_an_answer_after_the_client_is_gone_is_dropped(world: World) -> None:
    world.put.answer = None
    exchange = world.ask("/v3/kv/put", b"{}", headers={"Grpc-Timeout": "1S"})
    exchange.disconnect()
    sink, token, _, _ = world.put.calls[0]
    sink.reply(token, b"")
    assert exchange.status is None
    assert not world.clock.running


def test_a_client_that_leaves_within_its_body_is_never_served(world: World) -> None:
    exchange = world.begin("/v3/kv/put")
    exchange.body(b'{"key":', end=False)
    exchange.disconnect()
    exchange.body(b'"Zm9v"}')
    assert not world.put.calls


def test_p4_a_message_over_the_limit(world: World) -> None:
    request = PutRequest(key=b"k", value=b"v" * MESSAGE_BYTES)
    size = request.ByteSize()
    body = orjson.dumps({"key": "aw==", "value": "dnZ2" * (MESSAGE_BYTES // 3) + "dg=="})
    exchange = world.ask("/v3/kv/put", body)
    assert (exchange.status, exchange.json["code"]) == (429, 8)
    assert exchange.json["message"] == f"grpc: received message larger than max ({size} vs. {MESSAGE_BYTES})"
    assert not world.put.calls


def test_a_body_over_the_limit_is_refused_before_its_end(world: World) -> None:
    exchange = world.begin("/v3/kv/put")
    exchange.body(b'{"x":"' + b"x" * (2 * MESSAGE_BYTES + 65_536), end=False)
    assert (exchange.status, exchange.json["code"]) == (429, 8)
    exchange.body(b"x", b'"}')
    assert not world.put.calls


def test_a_range_with_keys(world: World) -> None:
    world.range.answer = RangeResponse(
        header=HEADER, kvs=[{"key": b"foo", "create_revision": 2, "mod_revision": 2, "version": 1}], count=1
    )
    exchange = world.ask("/v3/kv/range", b'{"key":"Zm9v","sortOrder":"ASCEND"}')
    assert world.range.asked == RangeRequest(key=b"foo", sort_order=RangeRequest.ASCEND)
    assert exchange.json["kvs"] == [{"key": "Zm9v", "create_revision": "2", "mod_revision": "2", "version": "1"}]


def test_every_path_reaches_its_call() -> None:
    for http_path, route in ROUTES.items():
        if route.server_streaming:
            continue
        unary = FakeUnary(route.request)
        unary.answer = route.reply()
        gateway = Gateway(
            unary={route.path: unary},
            streams={},
            call_later=FakeClock().call_later,
            run_aside=run_inline,
            message_bytes=MESSAGE_BYTES,
        )
        exchange = FakeExchange("POST", http_path)
        request = Access().admit(exchange)
        assert request is not None
        gateway.handle(request)
        exchange.body()
        assert (exchange.status, exchange.reply) == (200, b"{}"), http_path
        assert unary.calls[0][2].path == route.path


def test_ma18_a_reply_without_a_header_is_an_empty_object() -> None:
    assert ROUTES["/v3/maintenance/defragment"].reply is rpc_pb2.DefragmentResponse


def large_reply() -> RangeResponse:
    return RangeResponse(header=HEADER, kvs=[{"key": b"k", "value": b"v" * ASIDE_BYTES}], count=1)


def test_a_large_reply_is_made_beside_the_loop_while_others_are_answered() -> None:
    thread = HeldThread()
    world = World(thread.run)
    world.range.answer = large_reply()
    large = world.ask("/v3/kv/range", b'{"key":"aw=="}')
    assert len(thread.held) == 1
    world.range.answer = RangeResponse(header=HEADER)
    assert world.ask("/v3/kv/range", b"{}").status == 200
    assert world.ask("/v3/kv/put", b'{"key":"aw=="}').status == 200
    assert not large.finished
    thread.release()
    assert (large.status, len(large.json["kvs"][0]["value"])) == (200, (ASIDE_BYTES + 2) // 3 * 4)
    assert large.reply_headers == JSON_REPLY


def test_a_reply_of_just_the_bound_is_made_at_once() -> None:
    thread = HeldThread()
    world = World(thread.run)
    empty = RangeResponse(kvs=[{"value": b"v" * 60_000}])
    empty.kvs[0].value += b"v" * (ASIDE_BYTES - empty.ByteSize())
    assert empty.ByteSize() == ASIDE_BYTES
    world.range.answer = empty
    assert world.ask("/v3/kv/range", b"{}").status == 200
    assert not thread.held


def test_a_client_that_leaves_before_its_large_reply() -> None:
    thread = HeldThread()
    world = World(thread.run)
    world.range.answer = large_reply()
    exchange = world.ask("/v3/kv/range", b"{}")
    exchange.disconnect()
    thread.release()
    assert exchange.status is None


def test_a_deadline_cannot_answer_again_while_the_reply_is_made() -> None:
    thread = HeldThread()
    world = World(thread.run)
    world.range.answer = large_reply()
    exchange = world.ask("/v3/kv/range", b"{}", headers={"Grpc-Timeout": "1S"})
    assert not world.clock.running
    thread.release()
    assert exchange.status == 200


def test_calls_count_as_grpc_calls(world: World) -> None:
    """Seen on 3.5.1: what is no message never becomes a call, and an answer of the service counts by its code."""
    put = world.gateway.routes["/etcdserverpb.KV/Put"]
    world.ask("/v3/kv/put", b'{"key":"Zm9v","value":"YmFy"}')
    assert (put.started, put.received, put.sent_messages, put.ok, put.failed) == (1, 1, 1, 1, {})
    assert world.put.answer is not None and not isinstance(world.put.answer, tuple)
    traffic = world.gateway.traffic
    assert (traffic.received_bytes, traffic.sent_bytes) == (10, world.put.answer.ByteSize())
    world.put.answer = (errors.EMPTY_KEY.code, errors.EMPTY_KEY.message)
    world.ask("/v3/kv/put", b"{}")
    assert (put.started, put.received, put.sent_messages, put.failed) == (2, 2, 1, {Code.INVALID_ARGUMENT: 1})
    world.ask("/v3/kv/put", b"nope")
    assert put.started == 2
    world.put.answer = None
    world.ask("/v3/kv/put", b"{}", headers={"Grpc-Timeout": "1S"})
    world.clock.running[0].fire()
    assert (put.started, put.failed[Code.DEADLINE_EXCEEDED]) == (3, 1)
