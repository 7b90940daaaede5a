"""What a running cluster says of itself to a member that has not started yet: the pages, and the asking over HTTP."""

import contextlib
import dataclasses
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.log import Level, LogFormat, Logger
from kvorum.self_signed import write_certificate
from node import remote_http
from node.config import PeerTls
from node.remote_cluster import RemoteCluster, RemoteMember, incompatibility, read_cluster_id, read_members
from node.remote_http import ANSWER_MAX_BYTES
from tests.node.flags.parsed import config

MEMBERS = (
    b'[{"id":16176411575800646354,"peerURLs":["http://127.0.0.1:2","http://127.0.0.1:1"],"isLearner":true},'
    b'{"id":803679140075010678,"peerURLs":["http://127.0.0.1:3"],"name":"a","clientURLs":["http://c:2","http://c:1"]}]'
)
VERSION = b'{"etcdserver":"3.7.0","etcdcluster":"3.7.0"}'
CLUSTER = RemoteCluster(
    0x544E90D7919B502B,
    (
        RemoteMember(803679140075010678, "a", ("http://127.0.0.1:3",), ("http://c:1", "http://c:2"), False),
        RemoteMember(16176411575800646354, "", ("http://127.0.0.1:1", "http://127.0.0.1:2"), (), True),
    ),
)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["id", "peerURLs", "name", "clientURLs", "isLearner", "etcdcluster"]), inner)
    ),
)
HEADERS = b"X-Etcd-Cluster-Id: 544e90d7919b502b\r\nX-Kvorum-Version: 0.1.0\r\n"
TIMEOUT_S = 20.0


class TestPages:
    def test_members(self) -> None:
        assert read_members(MEMBERS) == CLUSTER.members
        assert CLUSTER.member(803679140075010678) == CLUSTER.members[0]
        assert CLUSTER.member(1) is None

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b"null",
            b"{}",
            b"[1]",
            b'[{"peerURLs":[]}]',
            b'[{"id":1}]',
            b'[{"id":"1","peerURLs":[]}]',
            b'[{"id":0,"peerURLs":[]}]',
            b'[{"id":-1,"peerURLs":[]}]',
            b'[{"id":18446744073709551616,"peerURLs":[]}]',
            b'[{"id":1.5,"peerURLs":[]}]',
            b'[{"id":1,"peerURLs":[1]}]',
            b'[{"id":1,"peerURLs":["ftp://x:1"]}]',
            b'[{"id":1,"peerURLs":[],"name":7}]',
            b'[{"id":1,"peerURLs":[],"clientURLs":7}]',
        ],
    )
    def test_what_is_no_list_of_members(self, body: bytes) -> None:
        with pytest.raises(ValueError):
            read_members(body)

    @given(DOCUMENTS)
    def test_whatever_comes_is_read_or_refused(self, document: Any) -> None:
        body = orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)
        with contextlib.suppress(ValueError):
            assert read_members(body)
        with contextlib.suppress(ValueError):
            incompatibility("0.1.0", body)

    @pytest.mark.parametrize("text", ["", "x", "0", "-1", "1" * 17])
    def test_what_is_no_cluster_id(self, text: str) -> None:
        with pytest.raises(ValueError):
            read_cluster_id(text)

    @pytest.mark.parametrize(
        ("make", "version", "reason"),
        [
            ("0.1.0", "3.7.0", ""),
            ("0.1.0", "3.6.0", ""),
            ("0.1.0", "not_decided", ""),
            ("0.1.0", "3.8.0", "it is at version 3.8.0, this member at 3.7.0"),
            ("0.1.0", "4.0.0", "it is at version 4.0.0, this member at 3.7.0"),
            (None, "3.7.0", "its members are not kvorum's"),
        ],
    )
    def test_who_can_be_joined(self, make: str | None, version: str, reason: str) -> None:
        assert incompatibility(make, orjson.dumps({"etcdserver": "3.7.0", "etcdcluster": version})) == reason


Answer = Callable[[socket.socket], None]


def page(status: str, headers: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n" % (status.encode(), headers, len(body)) + body


def pages(headers: bytes, members: bytes = MEMBERS, version: bytes = VERSION, status: str = "200 OK") -> Answer:
    """A member that serves the two pages on one connection."""

    def answer(connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            for expected, body in ((b"GET /members HTTP/1.1\r\n", members), (b"GET /version HTTP/1.1\r\n", version)):
                if lines.readline() != expected:
                    return
                while lines.readline() != b"\r\n":
                    pass
                connection.sendall(page(status, headers, body))

    return answer


def says(answer: bytes) -> Answer:
    def send(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(answer)

    return send


def drips(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    ended = threading.Event()
    while not ended.wait(0.02):
        connection.sendall(b"X-More: 1\r\n" if connection.fileno() >= 0 else b"")


def is_silent(connection: socket.socket) -> None:
    while connection.recv(1000):
        pass


@contextlib.contextmanager
def peer(answer: Answer, listener: socket.socket, context: ssl.SSLContext | None = None) -> Iterator[None]:
    """Somebody who listens and takes one connection."""
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):  # the connection is cut, or the listener is closed
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(TIMEOUT_S)
                if context is None:
                    answer(connection)
                else:
                    with context.wrap_socket(connection, server_side=True) as secured:
                        answer(secured)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(TIMEOUT_S)
        listener.close()
        assert not thread.is_alive()


def tcp() -> tuple[socket.socket, str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener, "http://{}:{}".format(*listener.getsockname())


class Asked:
    """The answer, and what the log says of those that gave none."""

    def __init__(self, *urls: str, tls: PeerTls | None = None, timeout_s: float = TIMEOUT_S) -> None:
        lines: list[dict[str, str]] = []
        log = Logger((lambda _level, line: lines.append(orjson.loads(line)),), Level.INFO, LogFormat.JSON)
        self.cluster = remote_http.ask(urls, tls or config().peer_tls, timeout_s, log, Level.WARN)
        self.errors = [line["error"] for line in lines]
        assert all(line["msg"] == "failed to get cluster response" for line in lines)


class TestAsking:
    def test_a_member_answers(self) -> None:
        listener, url = tcp()
        with peer(pages(HEADERS), listener):
            assert Asked(url).cluster == CLUSTER

    def test_on_a_unix_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("p.sock")
        with peer(pages(HEADERS), listener):
            assert Asked("unix://p.sock").cluster == CLUSTER

    def test_the_first_that_answers_counts(self) -> None:
        silent, silent_url = tcp()
        listener, url = tcp()
        unbound, unbound_url = tcp()
        unbound.close()
        with peer(pages(HEADERS), listener):
            asked = Asked(unbound_url, url, silent_url)
        silent.close()
        assert asked.cluster == CLUSTER
        assert asked.errors == ["[Errno 111] Connection refused"]

    def test_nobody(self) -> None:
        assert Asked().cluster is None

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (says(b""), "Remote end closed connection without response"),
            (says(b"\x00\x01\xff\r\n\r\n"), "\x00\x01ÿ\r\n"),
            (says(page("200 OK", b"", MEMBERS)), "invalid literal for int() with base 16: ''"),
            (says(page("200 OK", HEADERS, b"no")), "invalid literal"),
            (says(page("404 Not Found", HEADERS, b"404")), "status 404"),
            (says(page("301 Moved", b"Location: http://127.0.0.1:1/\r\n", b"")), "status 301"),
            (says(page("200 OK", b"X: 1\r\n" * 200, b"")), "got more than 100 headers"),
            (
                says(page("200 OK", HEADERS, b" " * (ANSWER_MAX_BYTES + 1))),
                f"an answer of more than {ANSWER_MAX_BYTES} bytes",
            ),
            (pages(HEADERS, version=b"[]"), "not a page of versions"),
        ],
    )
    def test_what_is_no_answer(self, answer: Answer, error: str) -> None:
        listener, url = tcp()
        with peer(answer, listener):
            asked = Asked(url)
        assert asked.cluster is None
        assert len(asked.errors) == 1
        assert asked.errors[0].startswith(error)

    @pytest.mark.parametrize("answer", [is_silent, drips])
    def test_an_answer_that_takes_too_long(self, answer: Answer) -> None:
        listener, url = tcp()
        with peer(answer, listener):
            asked = Asked(url, timeout_s=0.2)
        assert asked.cluster is None
        assert asked.errors == ["timed out"]

    @pytest.mark.parametrize("url", ["http://127.0.0.1:", "http://127.0.0.1:99999", "http://a..b:1"])
    def test_where_nobody_can_listen(self, url: str) -> None:
        asked = Asked(url)
        assert asked.cluster is None
        assert len(asked.errors) == 1

    def test_not_a_url(self) -> None:
        assert Asked("http://127.0.0.1:99999", "nonsense").cluster is None


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("tls")
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    write_certificate(cert, key, ["127.0.0.1"], 1)
    return cert, key


class TestTls:
    def ask(self, certificate: tuple[str, str], *flags: str, client_auth: bool = False) -> Asked:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        context.set_alpn_protocols(["h2", "http/1.1"])
        if client_auth:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(certificate[0])
        listener, url = tcp()
        with peer(pages(HEADERS), listener, context):
            return Asked(url.replace("http:", "https:"), tls=config(*flags).peer_tls)

    def test_a_certificate_of_the_trusted_authority(self, certificate: tuple[str, str]) -> None:
        asked = self.ask(certificate, f"--peer-trusted-ca-file={certificate[0]}", "--tls-max-version=TLS1.2")
        assert asked.cluster == CLUSTER

    def test_of_nobody(self, certificate: tuple[str, str]) -> None:
        asked = self.ask(certificate)
        assert asked.cluster is None
        assert "certificate verify failed" in asked.errors[0]

    def test_certificates_that_members_make_themselves_are_not_checked(self, certificate: tuple[str, str]) -> None:
        cert, key = certificate
        tls = dataclasses.replace(
            config("--peer-auto-tls").peer_tls,
            cert_file=cert,
            key_file=key,
            client_cert_file=cert,
            client_key_file=key,
        )
        listener, url = tcp()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        with peer(pages(HEADERS), listener, context):
            assert Asked(url.replace("http:", "https:"), tls=tls).cluster == CLUSTER

    def test_the_member_shows_its_own(self, certificate: tuple[str, str]) -> None:
        cert, key = certificate
        trust = f"--peer-trusted-ca-file={cert}"
        assert self.ask(certificate, trust, client_auth=True).cluster is None
        shown = (f"--peer-client-cert-file={cert}", f"--peer-client-key-file={key}")
        assert self.ask(certificate, trust, *shown, client_auth=True).cluster == CLUSTER

    def test_only_members_of_the_allowed_names_are_asked(self, certificate: tuple[str, str]) -> None:
        trust = f"--peer-trusted-ca-file={certificate[0]}"
        assert self.ask(certificate, trust, "--peer-cert-allowed-hostname=127.0.0.1").cluster == CLUSTER
        asked = self.ask(certificate, trust, "--peer-cert-allowed-cn=somebody")
        assert asked.cluster is None
        assert asked.errors == ["the certificate's common name is missing, which is not allowed"]

    def test_files_that_hold_no_certificate(self, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        files = (f"--peer-cert-file={tmp_path / 'x'}", f"--peer-key-file={tmp_path / 'x'}")
        with pytest.raises(ssl.SSLError):
            Asked("https://127.0.0.1:1", tls=config(*files).peer_tls)
