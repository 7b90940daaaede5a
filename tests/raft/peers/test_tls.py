"""TLS between members: who is let in, on both ends."""

import asyncio
import http.client
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from node.config import PeerTls, TlsVersion
from node.raft.peers.tls import Certificate, address_refusal, client_context, name_refusal, server_context
from tests.raft.peers.certificates import NO_TLS, Authority, Files, settings
from tests.raft.peers.members import Place, TestMember, append, close, group, run, until

REJECTED = "rejected connection on peer endpoint"
NOT_CONNECTED = "cannot connect to a member"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture(scope="module")
def member(ours: Authority) -> Files:
    return ours.certificate("member")


async def speak(*places: tuple[Place, PeerTls]) -> None:
    """Members with these settings connect, and messages go both ways."""
    members = [TestMember(id_, [place], tls=tls) for id_, (place, tls) in enumerate(places, 1)]
    await group(*members)
    one, two = members
    one.transport.send([append(1, 2, 0, bytes(3_000_000))])
    two.transport.send([append(2, 1, 0, b"x")])
    await until(lambda: bool(one.heard.messages) and bool(two.heard.messages))
    assert two.heard.messages == [append(1, 2, 0, bytes(3_000_000))]
    await close(*members)


async def kept_out(one_tls: PeerTls, two_tls: PeerTls) -> tuple[TestMember, TestMember]:
    """Member 1 does not get to member 2; both are closed, and are returned for what they said."""
    one, two = TestMember(1, [Place.tcp("https")], tls=one_tls), TestMember(2, [Place.tcp("https")], tls=two_tls)
    await one.start()
    await two.start()
    one.knows(two)
    await until(lambda: bool(one.heard.said(NOT_CONNECTED)))
    assert not one.connected(two)
    await close(one, two)
    return one, two


def test_members_of_one_authority_speak(member: Files, ours: Authority) -> None:
    tls = settings(member, ours)
    run(lambda: speak((Place.tcp("https"), tls), (Place.tcp("https"), tls)))


def test_they_do_so_over_unix_sockets(member: Files, ours: Authority, tmp_path: Path) -> None:
    tls = settings(member, ours)
    run(lambda: speak((Place.unix(tmp_path / "1.sock", "unixs"), tls), (Place.unix(tmp_path / "2.sock", "unixs"), tls)))


def test_a_member_may_show_another_certificate_where_it_connects(member: Files, ours: Authority) -> None:
    caller = ours.certificate("caller", ["127.0.0.1"])
    tls = settings(
        member,
        ours,
        client_cert_file=str(caller.certificate),
        client_key_file=str(caller.key),
        allowed_cns=("caller", "member"),
    )
    run(lambda: speak((Place.tcp("https"), tls), (Place.tcp("https"), tls)))


def test_certificates_that_members_make_themselves_only_encrypt(ours: Authority, theirs: Authority) -> None:
    one = settings(ours.certificate("elsewhere", ["192.0.2.1"]), ours)
    two = settings(theirs.certificate("elsewhere", ["192.0.2.2"]), theirs)
    one, two = (replace(tls, auto=True, trusted_ca_file="", client_cert_auth=False) for tls in (one, two))
    run(lambda: speak((Place.tcp("https"), one), (Place.tcp("https"), two)))


def test_the_versions_asked_for_are_kept(member: Files, ours: Authority) -> None:
    async def test() -> None:
        old, new = {"max_version": TlsVersion.TLS12}, {"min_version": TlsVersion.TLS13}
        one, _ = await kept_out(settings(member, ours, **old), settings(member, ours, **new))
        assert one.heard.said(NOT_CONNECTED)[0]["error"] == "connection error: connection reset"

    run(test)


def test_a_listener_of_another_authority_is_not_spoken_to(member: Files, ours: Authority, theirs: Authority) -> None:
    async def test() -> None:
        stranger = theirs.certificate("member")
        one, _ = await kept_out(settings(member, ours), settings(stranger, ours, client_cert_auth=False))
        assert "certificate verify failed" in one.heard.said(NOT_CONNECTED)[0]["error"]

    run(test)


def test_a_caller_of_another_authority_is_not_let_in(member: Files, ours: Authority, theirs: Authority) -> None:
    async def test() -> None:
        stranger = theirs.certificate("member")
        _, two = await kept_out(settings(stranger, theirs, trusted_ca_file=str(ours.file)), settings(member, ours))
        assert two.heard.messages == []

    run(test)


def test_a_caller_without_a_certificate_is_not_let_in(member: Files, ours: Authority) -> None:
    async def test() -> None:
        await kept_out(settings(member, ours, client_cert_file="", client_key_file=""), settings(member, ours))

    run(test)


def test_a_listener_whose_certificate_is_for_another_host_is_not_spoken_to(member: Files, ours: Authority) -> None:
    async def test() -> None:
        elsewhere = ours.certificate("elsewhere", ["192.0.2.1", "elsewhere.example"])
        one, _ = await kept_out(settings(member, ours), settings(elsewhere, ours))
        assert "IP address mismatch" in one.heard.said(NOT_CONNECTED)[0]["error"]

    run(test)


def test_a_caller_whose_certificate_is_for_another_host_is_not_let_in(member: Files, ours: Authority) -> None:
    elsewhere = ours.certificate("elsewhere", ["192.0.2.1"])

    async def test() -> None:
        _, two = await kept_out(settings(elsewhere, ours), settings(member, ours))
        await until(lambda: bool(two.heard.said(REJECTED)))
        assert two.heard.said(REJECTED)[0]["error"] == "the certificate is for 192.0.2.1, not for 127.0.0.1"

    async def skipped() -> None:
        one = TestMember(1, [], tls=settings(elsewhere, ours))
        two = TestMember(2, [Place.tcp("https")], tls=settings(member, ours, skip_client_san_verification=True))
        await one.start()
        await two.start()
        one.knows(two)
        await until(lambda: one.connected(two))
        await close(one, two)

    run(test)
    run(skipped)


def test_a_certificate_for_localhost_is_looked_up(ours: Authority) -> None:
    named = settings(ours.certificate("named", ["localhost"]), ours)

    async def test() -> None:
        one, two = TestMember(1, [], tls=named), TestMember(2, [Place.tcp("https")], tls=named)
        two.urls = [url.replace("127.0.0.1", "localhost") for url in two.urls]
        await one.start()
        await two.start()
        one.knows(two)
        await until(lambda: one.connected(two))
        await close(one, two)

    run(test)


@pytest.mark.parametrize("rule", ["allowed_cns", "allowed_hostnames"])
def test_names_that_are_not_allowed_are_not_let_in(rule: str, member: Files, ours: Authority) -> None:
    async def test() -> None:
        strict = settings(member, ours, **{rule: ("other.example",)})
        _, two = await kept_out(settings(member, ours), strict)
        await until(lambda: bool(two.heard.said(REJECTED)))
        assert "which is not allowed" in two.heard.said(REJECTED)[0]["error"]

    run(test)


@pytest.mark.parametrize("rule", ["allowed_cns", "allowed_hostnames"])
def test_names_that_are_not_allowed_are_not_spoken_to(rule: str, member: Files, ours: Authority) -> None:
    async def test() -> None:
        strict = settings(member, ours, **{rule: ("other.example",)})
        one, _ = await kept_out(strict, settings(member, ours))
        assert "which is not allowed" in one.heard.said(NOT_CONNECTED)[0]["error"]

    run(test)


def test_the_pages_of_the_peer_port_want_a_certificate_too(member: Files, ours: Authority) -> None:
    tls = settings(member, ours)

    def get(port: int, context: ssl.SSLContext) -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
        try:
            connection.request("GET", "/version")
            return connection.getresponse().status
        finally:
            connection.close()

    async def test() -> None:
        place = Place.tcp("https")
        port = place.port
        two = TestMember(2, [place], tls=tls)
        await two.start()
        with_one, without = client_context(tls), client_context(replace(tls, client_cert_file="", client_key_file=""))
        for context in (with_one, without):
            context.set_alpn_protocols(["http/1.1"])
        assert await asyncio.to_thread(get, port, with_one) == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(get, port, without)
        await close(two)

    run(test)


def test_files_that_cannot_be_used_are_told_at_the_start_and_at_each_attempt(member: Files, ours: Authority) -> None:
    broken = settings(member, ours, cert_file="/nonexistent", client_cert_file="/nonexistent")
    with pytest.raises(OSError):
        server_context(broken)

    async def test() -> None:
        one, two = TestMember(1, [], tls=broken), TestMember(2, [Place.tcp("https")], tls=settings(member, ours))
        await one.start()
        await two.start()
        one.knows(two)
        await until(lambda: bool(one.heard.said(NOT_CONNECTED)))
        assert "No such file" in one.heard.said(NOT_CONNECTED)[0]["error"]
        await close(one, two)

    run(test)


def certificate(common_name: str = "", dns: Sequence[str] = (), ip: Sequence[str] = ()) -> Certificate:
    subject = ((("commonName", common_name),),) if common_name else ()
    names = [("DNS", name) for name in dns] + [("IP Address", address) for address in ip]
    return {"subject": subject, "subjectAltName": tuple(names)}


@pytest.mark.parametrize(
    ("dns", "ip", "allowed", "is_let_in"),
    [
        (["a.example"], [], "a.example", True),
        (["A.Example."], [], "a.example", True),
        (["*.example"], [], "a.example", True),
        (["*.example"], [], "b.a.example", False),
        (["*.example"], [], "example", False),
        (["*.example"], [], ".example", False),
        (["a.example"], [], "b.example", False),
        ([], ["192.0.2.1"], "192.0.2.1", True),
        ([], [], "a.example", False),
    ],
)
def test_allowed_host_names(dns: list[str], ip: list[str], allowed: str, is_let_in: bool) -> None:
    tls = replace(NO_TLS, allowed_hostnames=("z.other", allowed))
    assert (name_refusal(tls, certificate(dns=dns, ip=ip)) is None) is is_let_in


def test_allowed_common_names() -> None:
    tls = replace(NO_TLS, allowed_cns=("one", "two"))
    assert name_refusal(tls, certificate("two")) is None
    assert name_refusal(tls, certificate("three")) == "the certificate's common name is three, which is not allowed"
    assert name_refusal(tls, certificate()) == "the certificate's common name is missing, which is not allowed"
    assert name_refusal(tls, {}) is not None
    assert name_refusal(NO_TLS, {}) is None


def asked(answers: dict[str, list[str]]) -> Callable[[str], Awaitable[Sequence[str]]]:
    async def ask(name: str) -> Sequence[str]:
        return answers.get(name, [])

    return ask


DNS = asked({"a.example": ["192.0.2.1", "2001:db8::1"]})
REVERSE = asked({"192.0.2.9": ["nine.example"]})


@pytest.mark.parametrize(
    ("dns", "ip", "address", "is_let_in"),
    [
        ([], [], "192.0.2.7", True),  # it names no host at all
        ([], ["192.0.2.7"], "192.0.2.7", True),
        ([], ["192.0.2.7"], "192.0.2.8", False),
        ([], ["<invalid>"], "192.0.2.8", False),
        ([], ["2001:DB8:0:0:0:0:0:7"], "2001:db8::7", True),
        (["a.example"], [], "192.0.2.1", True),
        (["a.example"], ["192.0.2.7"], "2001:db8::1", True),
        (["b.example", "a.example"], [], "192.0.2.1", True),
        (["a.example"], [], "192.0.2.2", False),
        (["*.example"], [], "192.0.2.9", True),
        (["*.other"], [], "192.0.2.9", False),
        (["*.example"], [], "192.0.2.1", False),
    ],
)
def test_a_certificate_and_the_address_it_comes_from(
    dns: list[str], ip: list[str], address: str, is_let_in: bool
) -> None:
    refusal = asyncio.run(address_refusal(certificate(dns=dns, ip=ip), address, DNS, REVERSE))
    assert (refusal is None) is is_let_in
