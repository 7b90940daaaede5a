"""Child processes that only play their part: what the supervisor does with them is what is tested.

How one behaves is told by files in the data directory, so that a test can change it between generations.
"""

import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

import orjson

from kvorum.log import Logger
from node.child import ChildContext


def told(child: ChildContext, order: str) -> bool:
    """Whether the test left the order `order` for this role, for all its generations."""
    return Path(child.config.data_dir, f"{order}-{child.role}").exists()


def told_once(child: ChildContext, order: str) -> bool:
    """The same, for one generation."""
    path = Path(child.config.data_dir, f"{order}-once-{child.role}")
    if path.exists():
        path.unlink()
        return True
    return False


def report(child: ChildContext) -> None:
    """Leave what this child was given where the test finds it, whole or not at all."""
    directory = Path(child.config.data_dir)
    facts = {
        "pid": os.getpid(),
        "run_dir": child.run_dir,
        "incarnation": child.incarnation,
        "member_id": child.member_id,
        "cluster_id": child.cluster_id,
        "listeners": [[str(listener.url), str(listener.serves)] for listener in child.listeners],
        "force_new_cluster": child.config.force_new_cluster,
        "founding": child.founding.hex(),
        "remotes": child.remotes,
        "title": Path("/proc/self/comm").read_text().strip(),
        "modules": sorted(sys.modules),
    }
    path = directory / f"report-{child.role}{child.index}"
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(orjson.dumps(facts))
    temporary.rename(path)


def main(child: ChildContext) -> None:
    lifeline = child.lifeline
    if told_once(child, "die") or told(child, "die"):
        lifeline.failed("told to die")
        os._exit(3)
    if told(child, "raise"):
        raise RuntimeError("told to raise")
    report(child)
    if told(child, "long"):
        with lifeline.long_operation("being told to"):
            while told(child, "long"):
                if lifeline.stop_requested():
                    return
                select.select([lifeline], [], [], 0.02)
    poller = select.poll()
    poller.register(lifeline.fileno(), select.POLLIN)
    servers = {listener.fd: socket.socket(fileno=listener.fd) for listener in child.listeners}
    for fd, server in servers.items():
        server.listen()
        poller.register(fd, select.POLLIN)
    lifeline.ready()
    log = Logger.open(child.config.log)
    while not lifeline.stop_requested():
        lifeline.beat(time.monotonic())
        for fd, _ in poller.poll(20):
            if fd in servers:
                serve(servers[fd], child)
        if told_once(child, "finish"):
            lifeline.finished("told to finish")
        if told_once(child, "restart"):
            lifeline.restart("told to ask for another generation")
        if told_once(child, "close-line"):
            os.dup2(os.open("/dev/null", os.O_RDONLY), lifeline.fileno())
    if told(child, "linger"):
        signal.pause()
    log.info("child stops", role=str(child.role))


def serve(listener: socket.socket, child: ChildContext) -> None:
    """Answer a connection with the incarnation."""
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return
    with connection:
        connection.sendall(str(child.incarnation).encode())
