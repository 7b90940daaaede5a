"""The HTTP pages of the peer port, byte for byte as the reference gives them, and read by the reference."""

import asyncio
import json
import tempfile
from asyncio.subprocess import PIPE, Process

import pytest

from kvorum import API_VERSION
from kvorum.pb.rpc_pb2 import Member
from loadtest.launcher import Port, reference_tool
from node.raft.peers.pages import as_json, version_page
from tests.raft.peers.members import Place, TestMember, close, run

MEMBERS = [
    Member(
        ID=0x8E9E05C52164694D,
        name="one",
        peerURLs=["http://127.0.0.1:2380", "http://127.0.0.1:2381"],
        clientURLs=["http://127.0.0.1:2379"],
    ),
    Member(ID=7, peerURLs=["http://127.0.0.1:3380"], isLearner=True),
]


async def ask(member: TestMember, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, header fields and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(member.urls[0].rpartition(":")[2]))
    writer.write(request + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    first, *lines = head.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), {name.lower(): value for name, value in fields.items()}, body


def test_members() -> None:
    async def test() -> None:
        member = TestMember(1, [Place.tcp()], cluster_id=0xC1, members=MEMBERS)
        await member.start()
        for target in (b"/members", b"/members?x=1"):
            status, fields, body = await ask(member, b"GET " + target)
            assert (status, fields["content-type"], fields["x-etcd-cluster-id"]) == (200, "application/json", "c1")
            assert body == (
                b'[{"id":10276657743932975437,"peerURLs":["http://127.0.0.1:2380","http://127.0.0.1:2381"],'
                b'"name":"one","clientURLs":["http://127.0.0.1:2379"]},'
                b'{"id":7,"peerURLs":["http://127.0.0.1:3380"],"isLearner":true}]\n'
            )
        await close(member)

    run(test)


def test_version() -> None:
    async def test() -> None:
        member = TestMember(1, [Place.tcp()])
        await member.start()
        status, fields, body = await ask(member, b"GET /version")
        assert (status, fields["content-type"]) == (200, "application/json")
        assert json.loads(body) == {"etcdserver": API_VERSION, "etcdcluster": "3.7.0", "storage": API_VERSION}
        await close(member)

    run(test)


def test_a_cluster_version_that_is_not_known_yet() -> None:
    assert json.loads(version_page("")) == {
        "etcdserver": API_VERSION,
        "etcdcluster": "not_decided",
        "storage": "unknown",
    }


def test_a_member_of_which_little_is_known() -> None:
    assert as_json(Member(ID=5)) == {"id": 5, "peerURLs": []}


@pytest.mark.parametrize("target", [b"/", b"/members/", b"/version/", b"/health", b"/metrics", b"/raft", b"//["])
def test_nothing_else_is_found(target: bytes) -> None:
    async def test() -> None:
        member = TestMember(1, [Place.tcp()])
        await member.start()
        status, fields, body = await ask(member, b"GET " + target)
        assert (status, body) == (404, b"404 page not found\n")
        assert fields["content-type"] == "text/plain; charset=utf-8"
        assert fields["x-content-type-options"] == "nosniff"
        await close(member)

    run(test)


@pytest.mark.parametrize("path", [b"/members", b"/version"])
@pytest.mark.parametrize("method", [b"POST", b"PUT", b"HEAD", b"DELETE"])
def test_other_methods_are_not_allowed(method: bytes, path: bytes) -> None:
    async def test() -> None:
        member = TestMember(1, [Place.tcp()])
        await member.start()
        status, fields, body = await ask(member, method + b" " + path)
        assert (status, fields["allow"]) == (405, "GET")
        assert body == (b"" if method == b"HEAD" else b"Method Not Allowed\n")
        await close(member)

    run(test)


async def line_with(process: Process, msg: str) -> dict[str, str]:
    """The first line of the reference's log with this text."""
    assert process.stderr is not None
    seen = []
    while line := await process.stderr.readline():
        seen.append(line.decode())
        found: dict[str, str] = json.loads(line)
        if found["msg"] == msg:
            return found
    raise AssertionError(f"no line {msg!r} in:\n{''.join(seen)}")


def test_a_member_of_the_reference_that_joins_reads_the_pages() -> None:
    """It takes the cluster's id, and its own by its URL, from /members, and compares versions by /version."""

    async def test() -> None:
        port, client_port = Port(), Port()
        url = f"http://127.0.0.1:{port.number}"
        place = Place.tcp()
        members = [
            Member(ID=0xFEDCBA9876543210, name="one", peerURLs=[place.url], clientURLs=["http://127.0.0.1:1"]),
            Member(ID=0x0123456789ABCDEF, peerURLs=[url]),
        ]
        member = TestMember(0xFEDCBA9876543210, [place], cluster_id=0xABCDEF0011, members=members)
        member.cluster_version = "3.5.0"  # it joins no newer one than itself
        await member.start()
        with tempfile.TemporaryDirectory() as data_dir:
            process = await asyncio.create_subprocess_exec(
                str(reference_tool("etcd")),
                f"--data-dir={data_dir}/etcd",
                "--name=two",
                f"--listen-peer-urls={url}",
                f"--initial-advertise-peer-urls={url}",
                f"--listen-client-urls=http://127.0.0.1:{client_port.number}",
                f"--advertise-client-urls=http://127.0.0.1:{client_port.number}",
                f"--initial-cluster=one={place.url},two={url}",
                "--initial-cluster-state=existing",
                stderr=PIPE,
            )
            try:
                line = await line_with(process, "starting local member")
                assert (line["local-member-id"], line["cluster-id"]) == ("123456789abcdef", "abcdef0011")
            finally:
                process.kill()
                await process.wait()
                port.release()
                client_port.release()
        await close(member)

    run(test)
