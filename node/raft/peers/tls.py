"""TLS between members: contexts for both ends, and whose certificate is let in."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvorum.wire.tls import client_context, server_context

_VERSIONS: Final = {"TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTls:
    """TLS on the peer URLs; files are PEM, an empty name is none.

    With `client_cert_file` a member shows that certificate where it connects, else `cert_file`. `self_signed`: the
    certificates are made by the members themselves, so nobody can check another's, it only encrypts.
    """

    cert_file: str
    key_file: str
    trusted_ca_file: str = ""
    client_cert_auth: bool = False
    client_cert_file: str = ""
    client_key_file: str = ""
    crl_file: str = ""
    allowed_common_names: Sequence[str] = ()
    allowed_hostnames: Sequence[str] = ()
    self_signed: bool = False
    min_version: str = "TLS1.2"
    max_version: str | None = None
    cipher_suites: Sequence[str] = ()
    """OpenSSL's names; () for its default."""

    def server_context(self) -> ssl.SSLContext:
        """For the peer listeners. A file of authorities alone asks for certificates too, as the reference does.

        Raises OSError and ssl.SSLError for files that cannot be used.
        """
        context = server_context(
            Path(self.cert_file),
            Path(self.key_file),
            client_ca=Path(self.trusted_ca_file) if self.trusted_ca_file else None,
            ciphers=":".join(self.cipher_suites) or None,
        )
        if self.client_cert_auth and not self.trusted_ca_file:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        self._restrict(context)
        return context

    def client_context(self) -> ssl.SSLContext:
        """For a connection to another member. Reads the files each time, so that renewed certificates count.

        Raises as `server_context`.
        """
        context = client_context(
            ca=Path(self.trusted_ca_file) if self.trusted_ca_file else None,
            certificate=Path(self.client_cert_file or self.cert_file),
            key=Path(self.client_key_file or self.key_file),
            verify=not self.self_signed,
        )
        if self.allowed_hostnames:
            context.check_hostname = False  # the name must be one of these, whatever the URL's host is
        if self.cipher_suites:
            context.set_ciphers(":".join(self.cipher_suites))
        self._restrict(context)
        return context

    def refusal(self, certificate: dict[str, Any] | None) -> str | None:
        """Why the bearer of this verified certificate (`getpeercert`) is not let in; None when it is."""
        if self.allowed_common_names:
            names = common_names(certificate)
            if not any(name in self.allowed_common_names for name in names):
                return f"the certificate's common name {', '.join(names) or '(none)'} is not one of the allowed"
        if self.allowed_hostnames:
            names = host_names(certificate)
            if not any(matches(name, host) for name in names for host in self.allowed_hostnames):
                return f"the certificate is for {', '.join(names) or 'no host'}, which is not one of the allowed"
        return None

    def _restrict(self, context: ssl.SSLContext) -> None:
        context.minimum_version = _VERSIONS[self.min_version]
        if self.max_version is not None:
            context.maximum_version = _VERSIONS[self.max_version]
        if self.crl_file:
            context.load_verify_locations(self.crl_file)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


def certificate_of(transport: asyncio.BaseTransport) -> dict[str, Any] | None:
    """The verified certificate of a connection's other end; None without one."""
    session: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    return session.getpeercert() if session is not None else None


def common_names(certificate: dict[str, Any] | None) -> list[str]:
    """The common names of a certificate's subject."""
    subject = (certificate or {}).get("subject", ())
    return [value for relative_name in subject for key, value in relative_name if key == "commonName"]


def host_names(certificate: dict[str, Any] | None) -> list[str]:
    """The host names and addresses that a certificate is for."""
    names = (certificate or {}).get("subjectAltName", ())
    return [value for key, value in names if key in ("DNS", "IP Address")]


def matches(name: str, host: str) -> bool:
    """Whether a certificate's name, which may begin with `*.`, stands for this host (RFC 6125, section 6.4)."""
    name, host = name.lower().rstrip("."), host.lower().rstrip(".")
    if name.startswith("*."):
        label, dot, rest = host.partition(".")
        return bool(label and dot) and rest == name[2:]
    return name == host
