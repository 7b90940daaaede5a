"""Whether an endpoint that DNS names can be trusted (--trusted-ca-file, without --insecure-discovery).

It must accept a connection; and if the file is given, show a certificate that the file's authorities signed for the
domain whose records named it. (The reference reads the file and looks at no certificate.) Authorities of the system are
not asked: those who give no file have certificates of their own.
"""

import socket
import ssl
from typing import Final

from gateway.balance import Endpoint
from gateway.config import StartFailed
from gateway.discovery import Verify

TIMEOUT_S: Final = 5.0


def verifier(trusted_ca_file: str, domain: str) -> Verify:
    """Raises StartFailed if the file cannot be used."""
    context: ssl.SSLContext | None = None
    if trusted_ca_file:
        try:
            context = ssl.create_default_context(cafile=trusted_ca_file)
        except ssl.SSLError:
            raise StartFailed(f"cannot use {trusted_ca_file}: no certificate in it") from None
        except OSError as error:
            raise StartFailed(f"open {trusted_ca_file}: {(error.strerror or str(error)).lower()}") from None

    def verify(endpoint: Endpoint) -> None:
        with socket.create_connection((endpoint.host, endpoint.port), TIMEOUT_S) as connection:
            if context is not None:
                with context.wrap_socket(connection, server_hostname=domain.rstrip(".")):
                    return

    return verify
