"""TLS contexts from the flags' files."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from kvorum.wire.tls import client_context, server_context, unreadable
from proxy.config import ListenTls, StartFailed, UpstreamTls

T = TypeVar("T")

_VERSIONS: Final = {"TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}


def upstream_context(tls: UpstreamTls, alpn: tuple[str, ...] = ("h2",)) -> ssl.SSLContext:
    """Towards members. Raises StartFailed for a file that cannot be used, or a certificate with a common name.

    A member takes a call without a token for one of the user that the certificate names: through the proxy that would
    be every client's call.
    """
    _check_readable(tls.cert_file, tls.key_file, tls.ca_file)
    if tls.cert_file:
        name = common_name(tls.cert_file)
        if name:
            raise StartFailed(f"cert has non empty Common Name ({name}): {tls.cert_file}")

    def make() -> ssl.SSLContext:
        context = client_context(
            ca=Path(tls.ca_file) if tls.ca_file else None,
            certificate=Path(tls.cert_file) if tls.cert_file else None,
            key=Path(tls.key_file) if tls.key_file else None,
            verify=not tls.skip_verify,
        )
        context.set_alpn_protocols(list(alpn))
        return context

    return _made(make, f"--cert={tls.cert_file} --key={tls.key_file} --cacert={tls.ca_file}")


def listen_context(tls: ListenTls) -> ssl.SSLContext:
    """Towards clients. Raises StartFailed for a file that cannot be used."""
    _check_readable(tls.cert_file, tls.key_file, tls.trusted_ca_file)

    def make() -> ssl.SSLContext:
        context = server_context(
            Path(tls.cert_file),
            Path(tls.key_file),
            client_ca=Path(tls.trusted_ca_file) if tls.trusted_ca_file else None,
            ciphers=":".join(tls.ciphers) or None,
        )
        context.minimum_version = _VERSIONS[tls.min_version]
        if tls.max_version:
            context.maximum_version = _VERSIONS[tls.max_version]
        return context

    files = f"--cert-file={tls.cert_file} --key-file={tls.key_file} --trusted-ca-file={tls.trusted_ca_file}"
    return _made(make, files)


def common_name(cert_file: str) -> str:
    """The CN of the first certificate of a PEM file, or nothing. Raises StartFailed."""
    from cryptography import x509  # large, and few proxies have a certificate of their own

    try:
        certificate = x509.load_pem_x509_certificate(Path(cert_file).read_bytes())
    except ValueError as error:
        raise StartFailed(f"cannot use {cert_file}: {error}") from None
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _check_readable(*paths: str) -> None:
    reason = unreadable(*paths)
    if reason is not None:
        raise StartFailed(reason)


def _made(make: Callable[[], T], files: str) -> T:
    try:
        return make()
    except (ssl.SSLError, ValueError, OSError) as error:
        raise StartFailed(f"cannot use the TLS files {files}: {error}") from None
