"""Authorities and certificates for members, made when a test asks."""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from node.config import PeerTls, TlsVersion


@dataclass(frozen=True)
class Files:
    """PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates for members."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._key: Any = ec.generate_private_key(ec.SECP256R1())
        self.file = self._sign(name, self._key, (), is_authority=True).certificate

    def certificate(self, common_name: str, hosts: Sequence[str] = ("localhost", "127.0.0.1")) -> Files:
        """A certificate for these host names and addresses; it may be without a common name."""
        return self._sign(common_name, ec.generate_private_key(ec.SECP256R1()), hosts, is_authority=False)

    def _sign(self, common_name: str, key: Any, hosts: Sequence[str], *, is_authority: bool) -> Files:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(common_name))
            .issuer_name(_named(self._name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        built = builder.sign(self._key, hashes.SHA256())
        files = Files(
            self._folder / f"{self._name}-{common_name}.pem", self._folder / f"{self._name}-{common_name}.key"
        )
        files.certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else [])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


NO_TLS = PeerTls(
    cert_file="",
    key_file="",
    client_cert_file="",
    client_key_file="",
    trusted_ca_file="",
    client_cert_auth=False,
    allowed_cns=(),
    allowed_hostnames=(),
    skip_client_san_verification=False,
    auto=False,
    min_version=TlsVersion.TLS12,
    max_version=None,
    cipher_suites=(),
)


def settings(files: Files, authority: Authority, **changes: Any) -> PeerTls:
    """What a member with this certificate is told; it trusts the authority."""
    tls = replace(
        NO_TLS,
        cert_file=str(files.certificate),
        key_file=str(files.key),
        client_cert_file=str(files.certificate),
        client_key_file=str(files.key),
        trusted_ca_file=str(authority.file),
        client_cert_auth=True,
    )
    return replace(tls, **changes)
