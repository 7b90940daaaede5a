"""TLS contexts from files, with the ALPN names of gRPC and HTTP/1.1."""

import ssl
from pathlib import Path


def server_context(
    certificate: Path, key: Path, *, client_ca: Path | None = None, ciphers: str | None = None
) -> ssl.SSLContext:
    """For a listener: TLS 1.2 or newer. With `client_ca` every client must show a certificate of that authority.

    Raises OSError when a file cannot be read, ssl.SSLError when one does not hold what it should, or the ciphers
    (OpenSSL's syntax, TLS 1.2) name none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def client_context(
    *,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    verify: bool = True,
) -> ssl.SSLContext:
    """For a channel. Without `ca` the system's authorities count; without `verify` anyone's certificate does.

    Raises as `server_context` does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is not None:
        context.load_verify_locations(ca)
    else:
        context.load_default_certs()
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    return context


def unreadable(*paths: str) -> str | None:
    """Why the first of these files that cannot be read cannot; None when all can. Empty paths are no files."""
    for path in filter(None, paths):
        try:
            Path(path).read_bytes()
        except OSError as error:
            return f"open {path}: {(error.strerror or str(error)).lower()}"
    return None
