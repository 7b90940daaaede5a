"""What each of the processes that serve together is given."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.config import Config, StartFailed
from proxy.listeners import Place
from proxy.tenants.namespaces_file import NamespacesFile, NamespacesFileError
from proxy.tenants.service import read_namespaces_file


@dataclass(frozen=True, slots=True)
class Worker:
    """One of `config.workers` processes."""

    config: Config
    index: int
    run_dir: str | None
    """The directory in which workers meet; None when there is one."""
    clients: Place
    metrics: Place | None
    namespaces: NamespacesFile | None = None
    """What the namespaces file says, as it was when it could be used last."""


def knows_certificates(config: Config) -> bool:
    """Whether each client has shown a certificate of an authority that is trusted."""
    return config.listen_tls is not None and bool(config.listen_tls.trusted_ca_file)


def namespaces_file(config: Config) -> NamespacesFile | None:
    """What `--namespaces-file` says. Raises StartFailed."""
    if not config.namespaces_file:
        return None
    try:
        return read_namespaces_file(config.namespaces_file, knows_certificates=knows_certificates(config))
    except NamespacesFileError as error:
        raise StartFailed(str(error)) from None
