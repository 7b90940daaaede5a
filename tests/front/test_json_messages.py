"""Messages as JSON and back (behaviour J1-J8)."""

from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.pb import mvcc_pb2, rpc_pb2
from kvorum.pb.auth_pb2 import Permission
from node.front.json_messages import MAX_DEPTH, JsonError, decode, decode_bytes, encode, parse


def read(text: str, message: Message) -> Any:
    decode(parse(text.encode()), message)
    return message


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            rpc_pb2.RangeResponse(
                kvs=[
                    mvcc_pb2.KeyValue(key=b"foo", create_revision=2, mod_revision=3, version=1, value=b"bar", lease=9)
                ],
                count=1,
            ),
            '{"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"3","version":"1","value":"YmFy","lease":"9"}],'
            '"count":"1"}',
        ),
        (rpc_pb2.DeleteRangeResponse(prev_kvs=[mvcc_pb2.KeyValue()]), '{"prev_kvs":[{}]}'),
        (rpc_pb2.LeaseTimeToLiveResponse(ID=5, TTL=-1, grantedTTL=10), '{"ID":"5","TTL":"-1","grantedTTL":"10"}'),
        (rpc_pb2.Member(ID=1, peerURLs=["a"], clientURLs=["b"]), '{"ID":"1","peerURLs":["a"],"clientURLs":["b"]}'),
        (rpc_pb2.StatusResponse(dbSize=1, raftTerm=2), '{"dbSize":"1","raftTerm":"2"}'),
    ],
)
def test_j1_names_out_are_those_of_the_proto_files(message: Message, text: str) -> None:
    assert encode(message).decode() == text


@pytest.mark.parametrize(
    "text",
    [
        '{"key":"Zm9v","range_end":"Zm9w","sort_order":"DESCEND"}',
        '{"key":"Zm9v","rangeEnd":"Zm9w","sortOrder":"DESCEND"}',
        '{"key":"Zm9v","rangeEnd":"Zm9w","sort_order":"DESCEND","nobody":{"knows":[1,null]},"RangeEnd":1}',
    ],
)
def test_j2_names_in_are_either_and_unknown_ones_are_ignored(text: str) -> None:
    expected = rpc_pb2.RangeRequest(key=b"foo", range_end=b"fop", sort_order=rpc_pb2.RangeRequest.DESCEND)
    assert read(text, rpc_pb2.RangeRequest()) == expected


def test_j2_one_field_under_both_its_names_is_refused() -> None:
    with pytest.raises(JsonError, match="duplicate field"):
        read('{"range_end":"Zm9w","rangeEnd":"Zm9w"}', rpc_pb2.RangeRequest())


def test_j3_zero_fields_are_left_out_but_an_empty_message_that_is_set_stays() -> None:
    assert encode(rpc_pb2.RangeResponse()) == b"{}"
    assert encode(rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader())) == b'{"header":{}}'


@pytest.mark.parametrize("text", ["5", '"5"', "5.0", "5e0"])
def test_j4_64_bit_integers_in_are_numbers_or_strings(text: str) -> None:
    assert read(f'{{"limit":{text}}}', rpc_pb2.RangeRequest()).limit == 5


@pytest.mark.parametrize(
    "text",
    [
        *('""', '" 5"', '"5 "', '"abc"', '"1_000"', '"05"', '"+5"', '"٥"', "true", "1.5", "[]", "{}", "1e19"),
        *("9223372036854775808", '"9223372036854775808"', "-9223372036854775809", "18446744073709551616"),
    ],
)
def test_j4_what_is_no_integer_in_range_is_refused(text: str) -> None:
    with pytest.raises(JsonError, match="limit"):
        read(f'{{"limit":{text}}}', rpc_pb2.RangeRequest())


def test_j4_limits_of_the_types() -> None:
    assert read('{"limit":"-9223372036854775808"}', rpc_pb2.RangeRequest()).limit == -(1 << 63)
    assert read('{"limit":9223372036854775807}', rpc_pb2.RangeRequest()).limit == (1 << 63) - 1
    assert read('{"ID":18446744073709551615}', rpc_pb2.MemberRemoveRequest()).ID == (1 << 64) - 1
    for text in ('{"ID":-1}', '{"ID":"-1"}'):
        with pytest.raises(JsonError, match="out of range"):
            read(text, rpc_pb2.MemberRemoveRequest())


def test_j4_64_bit_integers_out_are_strings_and_32_bit_ones_numbers() -> None:
    message = rpc_pb2.HashKVResponse(hash=(1 << 32) - 1, hash_revision=(1 << 63) - 1)
    assert encode(message) == b'{"hash":4294967295,"hash_revision":"9223372036854775807"}'


@pytest.mark.parametrize("text", ["+/8=", "+/8", "-_8=", "-_8", "+/\\n8="])
def test_j5_bytes_in_are_base64_of_either_alphabet_with_or_without_padding(text: str) -> None:
    assert read(f'{{"key":"{text}"}}', rpc_pb2.PutRequest()).key == b"\xfb\xff"


@pytest.mark.parametrize(
    "text", ['"foo!"', '"Zg="', '"Z"', '"=Zg"', '"+_8="', '"Zg==Zg=="', '"é"', '" Zg=="', "5", "[]"]
)
def test_j5_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(JsonError, match="key"):
        read(f'{{"key":{text}}}', rpc_pb2.PutRequest())


def test_j5_bytes_out_are_standard_base64_with_padding() -> None:
    assert encode(mvcc_pb2.KeyValue(key=b"\xfb\xff")) == b'{"key":"+/8="}'


@given(st.binary(max_size=50), st.booleans(), st.booleans())
def test_j5_every_form_of_base64_is_read(data: bytes, url_safe: bool, padded: bool) -> None:
    text: str = orjson.loads(encode(mvcc_pb2.KeyValue(key=b"x", value=data))).get("value", "")
    if url_safe:
        text = text.replace("+", "-").replace("/", "_")
    assert decode_bytes(text if padded else text.rstrip("=")) == data


def test_j6_enums() -> None:
    assert read('{"sort_order":"DESCEND"}', rpc_pb2.RangeRequest()).sort_order == 2
    assert read('{"sort_order":2}', rpc_pb2.RangeRequest()).sort_order == 2
    assert read('{"sort_order":7}', rpc_pb2.RangeRequest()).sort_order == 7
    assert encode(mvcc_pb2.Event(type=mvcc_pb2.Event.DELETE)) == b'{"type":"DELETE"}'
    unknown = mvcc_pb2.Event.FromString(b"\x08\x07")
    assert encode(unknown) == b'{"type":7}'
    permission = read('{"permType":"READWRITE","filters":1}', Permission())
    assert permission.permType == Permission.READWRITE
    filters = read('{"filters":["NODELETE",0]}', rpc_pb2.WatchCreateRequest()).filters
    assert list(filters) == [1, 0]


@pytest.mark.parametrize("text", ['"FOO"', '"1"', "2147483648", "true", "[]"])
def test_j6_unknown_names_are_refused(text: str) -> None:
    with pytest.raises(JsonError, match="sort_order"):
        read(f'{{"sort_order":{text}}}', rpc_pb2.RangeRequest())


def test_j7_members_of_a_oneof_by_name() -> None:
    request = read('{"success":[{"request_put":{}},{"requestRange":{"key":"YQ=="}}]}', rpc_pb2.TxnRequest())
    assert [operation.WhichOneof("request") for operation in request.success] == ["request_put", "request_range"]
    create = read('{"create_request":{}}', rpc_pb2.WatchRequest())
    assert create.HasField("create_request")
    compare = read('{"version":"0"}', rpc_pb2.Compare())
    assert compare.WhichOneof("target_union") == "version"
    assert encode(compare) == b'{"version":"0"}'


def test_j7_two_members_of_a_oneof_are_refused() -> None:
    with pytest.raises(JsonError, match="already set"):
        read('{"request_put":{},"request_range":{}}', rpc_pb2.RequestOp())
    assert read('{"request_put":null,"request_range":{}}', rpc_pb2.RequestOp()).HasField("request_range")


def test_j8_a_field_given_null_is_unset() -> None:
    assert read('{"key":null,"limit":null,"sort_order":null}', rpc_pb2.RangeRequest()) == rpc_pb2.RangeRequest()
    assert read('{"success":null,"compare":null}', rpc_pb2.TxnRequest()) == rpc_pb2.TxnRequest()
    with pytest.raises(JsonError):
        read('{"success":[null]}', rpc_pb2.TxnRequest())
    with pytest.raises(JsonError):
        read('{"peerURLs":[null]}', rpc_pb2.MemberAddRequest())


@pytest.mark.parametrize("text", ["null", "[]", "1", '"x"', "true"])
def test_j8_a_body_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(JsonError, match="object"):
        read(text, rpc_pb2.RangeRequest())


@pytest.mark.parametrize(
    "text", ["{", '{"key"}', "{'key':1}", '{"limit":NaN}', '{"limit":01}', '{"key":"\\ud800"}', "\ufeff{}", "{}{}"]
)
def test_j11_bad_json_is_refused(text: str) -> None:
    with pytest.raises(JsonError):
        parse(text.encode())


@pytest.mark.parametrize("text", ['{"compare":{}}', '{"compare":[1]}', '{"success":[{"request_put":[]}]}'])
def test_wrong_shapes_are_refused(text: str) -> None:
    with pytest.raises(JsonError):
        read(text, rpc_pb2.TxnRequest())


@pytest.mark.parametrize("text", ['{"name":1}', '{"name":["x"]}', '{"name":{}}'])
def test_a_string_is_a_string(text: str) -> None:
    with pytest.raises(JsonError, match="string"):
        read(text, rpc_pb2.AuthenticateRequest())


@pytest.mark.parametrize("text", ['"true"', "1", "0"])
def test_a_bool_is_true_or_false(text: str) -> None:
    with pytest.raises(JsonError, match="true or false"):
        read(f'{{"serializable":{text}}}', rpc_pb2.RangeRequest())


def test_depth_is_bounded() -> None:
    def nested(levels: int) -> str:
        return '{"success":[{"request_txn":' * levels + "{}" + "}]}" * levels

    message = read(nested(MAX_DEPTH // 2 - 1), rpc_pb2.TxnRequest())
    assert rpc_pb2.TxnRequest.FromString(message.SerializeToString()) == message
    with pytest.raises(JsonError, match="depth"):
        read(nested(MAX_DEPTH // 2), rpc_pb2.TxnRequest())
    with pytest.raises(JsonError):
        read(nested(10_000), rpc_pb2.TxnRequest())


blobs = st.binary(max_size=8)
numbers = st.integers(-(1 << 63), (1 << 63) - 1)
texts = st.text(max_size=8)
key_values = st.builds(mvcc_pb2.KeyValue, key=blobs, value=blobs, lease=numbers, version=numbers)
events = st.builds(
    mvcc_pb2.Event, type=st.sampled_from([0, 1]), kv=key_values, prev_kv=st.one_of(st.none(), key_values)
)
messages = st.one_of(
    st.builds(rpc_pb2.WatchResponse, watch_id=numbers, events=st.lists(events, max_size=3), cancel_reason=texts),
    st.builds(rpc_pb2.RangeResponse, kvs=st.lists(key_values, max_size=3), more=st.booleans(), count=numbers),
    st.builds(rpc_pb2.LeaseTimeToLiveResponse, ID=numbers, keys=st.lists(blobs, max_size=3)),
    st.builds(
        rpc_pb2.Member, ID=st.integers(0, (1 << 64) - 1), peerURLs=st.lists(texts, max_size=3), isLearner=st.booleans()
    ),
    st.builds(rpc_pb2.Compare, key=blobs, value=st.one_of(st.none(), blobs), result=st.integers(0, 3)),
    st.builds(rpc_pb2.HashKVResponse, hash=st.integers(0, (1 << 32) - 1)),
)


@given(messages)
@settings(max_examples=200)
def test_encoding_agrees_with_the_protobuf_library_and_decodes_back(message: Message) -> None:
    text = encode(message)
    assert orjson.loads(text) == json_format.MessageToDict(message, preserving_proto_field_name=True)
    assert read(text.decode(), type(message)()) == message
    camel = orjson.dumps(json_format.MessageToDict(message)).decode()
    assert read(camel, type(message)()) == message
