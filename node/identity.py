"""Who a member is: decided at its first start, kept in `member/identity`, never decided again (behaviour S40).

The file says too whether the member founded its cluster or joined it, and with whom: a process that dies between this
decision and the log's first write finds here, at its next start, what that first write must be.
"""

import os
from pathlib import Path
from typing import NamedTuple

import orjson

from node.datadir import FILE_MODE, DataDirError, failure


class FirstMember(NamedTuple):
    """A member as others know it before a log tells more: `peer_urls` sorted; the name may be empty."""

    id: int
    name: str
    peer_urls: tuple[str, ...]


class Identity(NamedTuple):
    """Who the member is, and what it was told of its cluster.

    `members`, itself among them, are in the order of their ids: of a founder, those that found the cluster, the same
    at each of them; of one that joined, those that were members then.
    """

    member_id: int
    cluster_id: int
    founder: bool
    members: tuple[FirstMember, ...]


def read_identity(data_dir: str) -> Identity | None:
    """Who the member is; None before its first start. Raises DataDirError for a file that is damaged."""
    path = _path(data_dir)
    try:
        fields = orjson.loads(path.read_bytes())
        if fields["start"] not in ("founder", "joined"):
            raise ValueError(fields["start"])
        members = tuple(
            FirstMember(int(member["id"], 16), str(member["name"]), tuple(map(str, member["peer-urls"])))
            for member in fields["members"]
        )
        return Identity(
            int(fields["member-id"], 16), int(fields["cluster-id"], 16), fields["start"] == "founder", members
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataDirError(f"cannot access data directory: {failure('open', path, error)}") from None
    except (ValueError, KeyError, TypeError):
        raise DataDirError(f"{path} is damaged: it should hold the ids of the member and of its cluster") from None


def write_identity(data_dir: str, identity: Identity) -> None:
    """Decide who the member is, once and for all: on disk when this returns. Raises DataDirError."""
    path = _path(data_dir)
    temporary = path.with_name(path.name + ".tmp")
    fields = {
        "member-id": f"{identity.member_id:x}",
        "cluster-id": f"{identity.cluster_id:x}",
        "start": "founder" if identity.founder else "joined",
        "members": [
            {"id": f"{member.id:x}", "name": member.name, "peer-urls": member.peer_urls} for member in identity.members
        ],
    }
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        with os.fdopen(fd, "wb") as file:
            file.write(orjson.dumps(fields, option=orjson.OPT_INDENT_2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        directory_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory_fd)
        finally:
            os.close(directory_fd)
    except OSError as error:
        raise DataDirError(f"cannot write to data directory: {failure('write', path, error)}") from None


def founding_bytes(identity: Identity) -> bytes:
    """The first entry of a founder's log: an internal.Founding message, the same bytes at every founder. Empty if it
    joined.

    Written here by hand, field by field: the message library is 4 MiB that the supervisor needs for nothing else.
    """
    if not identity.founder:
        return b""
    return b"".join(_field(1, _member_message(member)) for member in identity.members)


def _member_message(member: FirstMember) -> bytes:
    parts = [b"\x08" + _varint(member.id)]
    parts += [_field(2, member.name.encode())] if member.name else []
    parts += [_field(3, url.encode()) for url in member.peer_urls]
    return b"".join(parts)


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _path(data_dir: str) -> Path:
    return Path(data_dir) / "member" / "identity"
