"""The scenario of watch fan-out with a fault: each watcher misses one reply. Run by locust, never imported by tests."""

from kvorum.pb.rpc_pb2 import WatchResponse
from loadtest.checks import Fault, WatchCheck

_take = WatchCheck.take
_missed: set[WatchCheck] = set()


def take_all_but_one(check: WatchCheck, reply: WatchResponse) -> list[Fault]:
    if reply.events and check not in _missed:
        _missed.add(check)
        return []
    return _take(check, reply)


setattr(WatchCheck, "take", take_all_but_one)  # noqa: B010  # mypy refuses the assignment, as it should elsewhere

from loadtest.scenarios.watch_fan_out import Watcher, Writer  # noqa: E402  # after the fault is in place

__all__ = ["Watcher", "Writer"]
