"""Telling systemd that the process serves (sd_notify(3), behaviour S54)."""

import socket
from collections.abc import Mapping

from kvorum.log import Logger


def notify_ready(environ: Mapping[str, str], log: Logger) -> None:
    """Send READY=1 to $NOTIFY_SOCKET; without that variable do nothing. A failure is logged and that is all."""
    path = environ.get("NOTIFY_SOCKET")
    if not path:
        return
    log.info("notifying init daemon")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
            daemon.connect("\0" + path[1:] if path.startswith("@") else path)
            daemon.send(b"READY=1")
    except OSError as error:
        log.error("failed to notify systemd for readiness", error=str(error))
        return
    log.info("successfully notified init daemon")
