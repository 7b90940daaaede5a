"""The command `kvorum`: reads the settings, takes the data directory and the ports, and runs the supervisor."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from kvorum import API_VERSION, __version__
from kvorum.endings import die_by
from kvorum.init_daemon import notify_ready
from kvorum.listening import ListenFailed
from kvorum.log import Level, Logger, LogSettings
from kvorum.resolver import Resolver
from kvorum.self_signed import CertificateFailed, provide_certificate
from kvorum.urls import Url
from kvorum.wire.tls import unreadable
from node import bootstrap, datadir, listeners
from node.bootstrap import Outside, Patience
from node.config import Config
from node.datadir import DataDirError
from node.first_start import Members
from node.flags import Exit, parse
from node.flags.checks import StartFailed, cluster_text
from node.flags.notes import Note
from node.identity import Identity
from node.remote_cluster import RemoteCluster
from node.supervisor import Ending, Supervisor

EXIT_FAILED: Final = 1


def main() -> NoReturn:
    """Run a member with the process's arguments and environment; end as the process should end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the supervisor takes signals, a Ctrl-C needs no traceback
    end(run(sys.argv, os.environ))


def run(argv: list[str], environ: Mapping[str, str], supervisor: Callable[..., Supervisor] = Supervisor) -> Ending:
    """Run a member until it ends. Tests give another `supervisor`: the class with other limits and children."""
    parsed = parse(argv, environ, lambda path: Path(path).read_bytes())
    if isinstance(parsed, Exit):
        sys.stdout.write(parsed.stdout)
        sys.stderr.write(parsed.stderr)
        sys.stdout.flush()
        _write_notes(parsed.log, parsed.notes)
        return Ending(None, parsed.code)
    config = parsed.config
    try:
        log = Logger.open(config.log)
    except OSError as error:
        failed = Note(Level.WARN, "failed to verify flags", {"error": f"cannot open the log: {error}"})
        _write_notes(LogSettings(), (failed,))
        return Ending(None, EXIT_FAILED)
    for note in parsed.notes:
        log.log(note.level, note.msg, **note.fields)
    log.info("Running: ", args=argv)
    try:
        return _run_member(config, environ, log, supervisor)
    except (StartFailed, DataDirError, ListenFailed, OSError) as error:
        log.fatal("discovery failed", error=str(error))
        return Ending(None, EXIT_FAILED)


def end(ending: Ending) -> NoReturn:
    """End this process: with the exit code, or by the signal that stopped the member, except as pid 1 (S49)."""
    if ending.signal is not None:
        die_by(ending.signal)
    sys.exit(ending.code)


def _run_member(
    config: Config, environ: Mapping[str, str], log: Logger, supervisor: Callable[..., Supervisor]
) -> Ending:
    datadir.prepare(config.data_dir, config.wal_dir, log)
    lock_fd = datadir.lock(config.data_dir)
    try:
        _provide_certificates(config, log)
        bound = listeners.bind(listeners.wanted(config), config.socket_reuse_port)
        try:
            identity = bootstrap.identify(config, _outside(config, log), log)
            listeners.listen(bound)
            _log_start(config, identity, log)
            on_ready = partial(notify_ready, environ, log)
            ending = supervisor(config, identity, bound, lock_fd, log, on_ready=on_ready).run()
        finally:
            listeners.close(bound)
    finally:
        os.close(lock_fd)
    if ending.error:
        log.fatal("the member could not be started", error=ending.error)
    return ending


def _outside(config: Config, log: Logger) -> Outside:
    return Outside(partial(_ask, config, log), Resolver(log), partial(_discover, config, log))


def _discover(config: Config, log: Logger) -> Members:
    from kvorum.dns_services import srv_records
    from node.discovery_srv import discover

    return discover(
        config.name,
        config.discovery_srv,
        config.discovery_srv_name,
        config.initial_advertise_peer_urls,
        lambda service: [(found.target, found.port) for found in srv_records(service)],
        Resolver(log, patience_s=0.0),
        log,
    )


def _ask(config: Config, log: Logger, urls: Sequence[str], patience: Patience) -> RemoteCluster | None:
    if not urls:
        return None
    from node import remote_http  # its library is large, and most starts need none of it

    try:
        return remote_http.ask(urls, config.peer_tls, patience.timeout_s, log, patience.silence)
    except OSError as error:
        raise StartFailed(f"cannot use the files of TLS between members: {error}") from None


def _provide_certificates(config: Config, log: Logger) -> None:
    """Make the member's own certificates if that is asked for; see that all TLS files can be read."""
    years = config.self_signed_cert_validity_years
    if config.client_tls is not None:
        tls = config.client_tls
        if config.auto_tls:
            urls = (*config.listen_client_urls, *config.listen_client_http_urls, *config.listen_metrics_urls)
            _provide_certificate(tls.cert_file, tls.key_file, urls, years, log)
        _check_readable(tls.cert_file, tls.key_file, tls.trusted_ca_file)
    peers = config.peer_tls
    if peers.auto:
        _provide_certificate(peers.cert_file, peers.key_file, config.listen_peer_urls, years, log)
    _check_readable(peers.cert_file, peers.key_file)
    _check_readable(peers.client_cert_file, peers.client_key_file, peers.trusted_ca_file)


def _provide_certificate(cert_file: str, key_file: str, urls: Sequence[Url], years: int, log: Logger) -> None:
    try:
        provide_certificate(cert_file, key_file, urls, years, log)
    except CertificateFailed as error:
        raise StartFailed(str(error)) from None


def _check_readable(*paths: str) -> None:
    reason = unreadable(*paths)
    if reason is not None:
        raise StartFailed(reason)


def _log_start(config: Config, identity: Identity, log: Logger) -> None:
    log.info(
        "starting an etcd server",
        etcd_version=API_VERSION,
        kvorum_version=__version__,
        name=config.name,
        data_dir=config.data_dir,
        wal_dir=config.wal_dir,
        member_id=f"{identity.member_id:x}",
        cluster_id=f"{identity.cluster_id:x}",
        founder=identity.founder,
        front_workers=config.front_workers,
        heartbeat_interval_s=config.heartbeat_interval_s,
        election_timeout_s=config.election_timeout_s,
        snapshot_count=config.snapshot_count,
        max_wals=config.max_wals,
        quota_backend_bytes=config.quota_backend_bytes,
        listen_peer_urls=[str(url) for url in config.listen_peer_urls],
        listen_client_urls=[str(url) for url in config.listen_client_urls],
        listen_metrics_urls=[str(url) for url in config.listen_metrics_urls],
        advertise_client_urls=[str(url) for url in config.advertise_client_urls],
        initial_advertise_peer_urls=[str(url) for url in config.initial_advertise_peer_urls],
        initial_cluster=cluster_text(dict(config.initial_cluster)),
        initial_cluster_state=str(config.initial_cluster_state),
        initial_cluster_token=config.initial_cluster_token,
        auto_compaction_mode=str(config.auto_compaction.mode),
        feature_gates=sorted(config.feature_gates),
    )


def _write_notes(settings: LogSettings, notes: tuple[Note, ...]) -> None:
    if notes:
        log = Logger.open(settings)
        for note in notes:
            log.log(note.level, note.msg, **note.fields)


if __name__ == "__main__":
    main()
