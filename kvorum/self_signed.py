"""The certificates that members and proxies make for themselves (--auto-tls, --peer-auto-tls), each in a process of its
own: their library is large.
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvorum.log import Logger
from kvorum.spawn import ChildProcess
from kvorum.urls import Url

if TYPE_CHECKING:
    from cryptography import x509


class CertificateFailed(Exception):
    """No certificate could be made; the text says why."""


def provide_certificate(cert_file: str, key_file: str, urls: Sequence[Url], years: int, log: Logger) -> None:
    """See that the two files are there: if not, make them, for the hosts of the secure listeners among `urls`. Raises
    CertificateFailed."""
    if Path(cert_file).exists() and Path(key_file).exists():
        return
    hosts = sorted({url.address[0] for url in urls if url.is_secure and not url.is_unix} | {"localhost"})
    if years == 0:
        raise CertificateFailed("--self-signed-cert-validity must be >0 (set to 0)")
    log.warn("automatically generate certificates", cert=cert_file, hosts=hosts, validity_years=years)
    process = ChildProcess(write_certificate, (cert_file, key_file, hosts, years), "kvorum-certificate")
    process.start()
    process.join()
    failed = process.exitcode != 0
    process.close()
    if failed:
        raise CertificateFailed(f"cannot make the certificate {cert_file}")


def write_certificate(cert_file: str, key_file: str, hosts: Sequence[str], validity_years: int) -> None:
    """Write a key (EC P-256) and a certificate signed with it (PEM), valid from now on for the hosts and addresses."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "kvorum")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=365 * validity_years))
        .add_extension(x509.SubjectAlternativeName([_alternative_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    directory = Path(cert_file).parent
    directory.mkdir(0o700, parents=True, exist_ok=True)
    _write(key_file, private)
    _write(cert_file, certificate.public_bytes(serialization.Encoding.PEM))


def _alternative_name(host: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: str, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
