"""Replies that the proxy reads itself."""

import pytest

from kvorum.errors import Code
from kvorum.pb.rpc_pb2 import LeaseGrantResponse
from proxy.upstream.replies import read_as

Answer = tuple[int, str, LeaseGrantResponse]


@pytest.fixture
def answers() -> list[Answer]:
    return []


def test_a_reply_is_read(answers: list[Answer]) -> None:
    reply = LeaseGrantResponse(ID=7, TTL=6)
    read_as(LeaseGrantResponse, lambda *answer: answers.append(answer))(0, "", reply.SerializeToString())
    assert answers == [(0, "", reply)]


def test_a_failure_has_an_empty_reply(answers: list[Answer]) -> None:
    read_as(LeaseGrantResponse, lambda *answer: answers.append(answer))(Code.UNAVAILABLE, "gone", b"\xff")
    assert answers == [(Code.UNAVAILABLE, "gone", LeaseGrantResponse())]


def test_one_that_cannot_be_read_is_a_failure(answers: list[Answer]) -> None:
    # the first field of it can be
    read_as(LeaseGrantResponse, lambda *answer: answers.append(answer))(0, "", b"\x10\x07\xff")
    ((code, text, reply),) = answers
    assert (code, reply) == (Code.INTERNAL, LeaseGrantResponse())
    assert text.startswith("grpc: error unmarshalling response: ")
