"""TLS between members: contexts for both ends, and whose certificate is let in."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from kvorum.wire import tls as wire
from node.config import PeerTls, TlsVersion

Certificate = dict[str, Any]
"""What `ssl` gives of a verified certificate (`getpeercert`); empty for one that was not verified."""

_VERSIONS: Final = {TlsVersion.TLS12: ssl.TLSVersion.TLSv1_2, TlsVersion.TLS13: ssl.TLSVersion.TLSv1_3}


def server_context(tls: PeerTls) -> ssl.SSLContext:
    """For the peer listeners. Raises OSError and ssl.SSLError for files that cannot be used."""
    context = wire.server_context(
        Path(tls.cert_file),
        Path(tls.key_file),
        client_ca=Path(tls.trusted_ca_file) if tls.trusted_ca_file else None,
        ciphers=":".join(tls.cipher_suites) or None,
    )
    if tls.requires_client_cert and not tls.trusted_ca_file:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    _set_versions(context, tls)
    return context


def client_context(tls: PeerTls) -> ssl.SSLContext:
    """For a connection to another member. Reads the files each time, so that renewed certificates count.

    Raises as `server_context`.
    """
    context = wire.client_context(
        ca=Path(tls.trusted_ca_file) if tls.trusted_ca_file else None,
        certificate=Path(tls.client_cert_file) if tls.client_cert_file else None,
        key=Path(tls.client_key_file) if tls.client_key_file else None,
        verify=not tls.auto,
    )
    if tls.cipher_suites:
        context.set_ciphers(":".join(tls.cipher_suites))
    _set_versions(context, tls)
    return context


def _set_versions(context: ssl.SSLContext, tls: PeerTls) -> None:
    context.minimum_version = _VERSIONS[tls.min_version]
    if tls.max_version is not None:
        context.maximum_version = _VERSIONS[tls.max_version]


def certificate_of(transport: asyncio.BaseTransport) -> Certificate:
    """The verified certificate of a connection's other end; empty without one."""
    session: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    return (session.getpeercert() or {}) if session is not None else {}


def name_refusal(tls: PeerTls, certificate: Certificate) -> str | None:
    """Why the bearer of a certificate is not let in by --peer-cert-allowed-cn or -hostname; None: it is let in."""
    if tls.allowed_cns:
        common_names = _common_names(certificate)
        if not any(name in tls.allowed_cns for name in common_names):
            return f"the certificate's common name is {', '.join(common_names) or 'missing'}, which is not allowed"
    if tls.allowed_hostnames:
        names = _names(certificate, "DNS") + _names(certificate, "IP Address")
        if not any(_stands_for(name, host) for name in names for host in tls.allowed_hostnames):
            return f"the certificate is for {', '.join(names) or 'no host'}, which is not allowed"
    return None


Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""The addresses of a host, or the names of an address; () when there are none."""


async def address_refusal(certificate: Certificate, address: str, resolve: Resolve, names_of: Resolve) -> str | None:
    """Why a certificate is not one of the host at `address`; None: it is, or it names no host at all.

    A name that begins with `*.` stands for the names that DNS has for the address. The reference has the same rule
    (--peer-skip-client-san-verification turns it off).
    """
    hosts, addresses = _names(certificate, "DNS"), _names(certificate, "IP Address")
    if not hosts and not addresses:
        return None
    if _is_among(address, addresses):
        return None
    for host in hosts:
        if not host.startswith("*."):
            if _is_among(address, await resolve(host)):
                return None
        elif any(_stands_for(host, name) for name in await names_of(address)):
            return None
    return f"the certificate is for {', '.join(hosts + addresses)}, not for {address}"


async def addresses_of(host: str) -> Sequence[str]:
    """What DNS has for a host name."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the latter: no host can be called so
        return ()
    return [str(place[4][0]) for place in found]


async def names_of(address: str) -> Sequence[str]:
    """What DNS has for an address."""
    loop = asyncio.get_running_loop()
    try:
        name, aliases, _ = await loop.run_in_executor(None, socket.gethostbyaddr, address)
    except OSError:
        return ()
    return [name, *aliases]


def _common_names(certificate: Certificate) -> list[str]:
    subject = certificate.get("subject", ())
    return [value for relative_name in subject for key, value in relative_name if key == "commonName"]


def _names(certificate: Certificate, kind: str) -> list[str]:
    return [value for key, value in certificate.get("subjectAltName", ()) if key == kind]


def _is_among(address: str, given: Sequence[str]) -> bool:
    """Addresses are compared as such: an IPv6 one has many spellings. What is none is equal to none."""
    here = ipaddress.ip_address(address)
    for text in given:
        try:
            if ipaddress.ip_address(text) == here:
                return True
        except ValueError:
            continue
    return False


def _stands_for(name: str, host: str) -> bool:
    """Whether a certificate's name, which may begin with `*.`, is one of this host (RFC 6125, section 6.4)."""
    name, host = name.lower().rstrip("."), host.lower().rstrip(".")
    if name.startswith("*."):
        label, dot, rest = host.partition(".")
        return bool(label and dot) and rest == name[2:]
    return name == host
