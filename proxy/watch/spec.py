"""What a watch asks for: watches that ask for the same share an upstream watch."""

from __future__ import annotations

from typing import Final, NamedTuple

from kvorum.errors import CODE_NAMES
from kvorum.pb.rpc_pb2 import WatchCreateRequest, WatchRequest
from kvorum.watch_replies import watch_id_field
from proxy.namespaces.namespace import Namespace

PREV: Final = 1
NOPUT: Final = 2
NODELETE: Final = 4
FRAGMENT: Final = 8

_SHARED_FIELDS: Final = 4096


class Spec(NamedTuple):
    """A range by its whole names, the options, and whose names the events show."""

    key: bytes
    range_end: bytes
    flags: int
    namespace: Namespace | None


def flags_of(request: WatchCreateRequest) -> int:
    """The options of a create; unknown filters are ignored (W23)."""
    flags = (PREV if request.prev_kv else 0) | (FRAGMENT if request.fragment else 0)
    if request.filters:
        flags |= NOPUT if WatchCreateRequest.NOPUT in request.filters else 0
        flags |= NODELETE if WatchCreateRequest.NODELETE in request.filters else 0
    return flags


def create_message(spec: Spec, watch_id: int, start: int) -> bytes:
    """The create that is sent upstream. Fragments are cut here, where their pieces can be kept together; progress is
    always wanted, since it tells how far a watch without events has come."""
    flags = spec.flags
    create = WatchCreateRequest(
        key=spec.key,
        range_end=spec.range_end,
        start_revision=start,
        progress_notify=True,
        prev_kv=flags & PREV != 0,
        watch_id=watch_id,
    )
    if flags & NOPUT:
        create.filters.append(WatchCreateRequest.NOPUT)
    if flags & NODELETE:
        create.filters.append(WatchCreateRequest.NODELETE)
    return WatchRequest(create_request=create).SerializeToString()


_FIELDS: Final = tuple(watch_id_field(watch_id) for watch_id in range(_SHARED_FIELDS))


def id_field_of(watch_id: int) -> bytes:
    """The field of a watch id, which names the watch within its stream. Small ones are shared: a million watches on
    some thousand streams have few different ids."""
    return _FIELDS[watch_id] if 0 <= watch_id < _SHARED_FIELDS else watch_id_field(watch_id)


def refusal_text(code: int, text: str) -> str:
    """How a refused create names the error of a call (W25, W26)."""
    return f"rpc error: code = {CODE_NAMES[code]} desc = {text}"
