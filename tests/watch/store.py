"""A store reduced to what watch sees of it: revisions, their events, and compaction."""

from collections.abc import Iterable

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.mvcc_pb2 import KeyValue
from node.apply.mvcc.history import KeyRanges
from node.events import Change, RevisionChanges


class Store:
    """Keeps everything; `history` answers as the real store's does."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = -1
        self.revisions: list[RevisionChanges] = []
        self.current: dict[bytes, KeyValue] = {}
        self.reads = 0

    def txn(self, operations: Iterable[tuple[bytes, bytes | None]]) -> RevisionChanges:
        """Puts (key, value) and deletes (key, None), one revision. Deleting an absent key is not allowed here."""
        revision = self.revision + 1
        before = {key: kv.SerializeToString() for key, kv in self.current.items()}
        changes: list[Change] = []
        for key, value in operations:
            if value is None:
                del self.current[key]
                kv = KeyValue(key=key, mod_revision=revision)
            else:
                old = self.current.get(key)
                kv = KeyValue(
                    key=key,
                    value=value,
                    create_revision=old.create_revision if old else revision,
                    mod_revision=revision,
                    version=old.version + 1 if old else 1,
                )
                self.current[key] = kv
            changes.append((value is None, key, kv.SerializeToString(), before.get(key)))
        self.revision = revision
        self.revisions.append((revision, changes))
        return self.revisions[-1]

    def history(
        self,
        from_revision: int,
        /,
        *,
        max_rows: int,
        max_bytes: int,
        ranges: KeyRanges | None,
        want_prev: bool,
    ) -> tuple[list[RevisionChanges], int]:
        """As `node.apply.mvcc.history.read_history`."""
        if from_revision < self.compacted:
            raise ApiError(errors.COMPACTED)
        self.reads += 1
        found: list[RevisionChanges] = []
        rows = size_bytes = 0
        for revision, changes in self.revisions[max(0, from_revision - 2) :]:
            rows += len(changes)
            visible = revision - 1 >= self.compacted
            matching = [
                (is_delete, key, kv, prev if want_prev and visible else None)
                for is_delete, key, kv, prev in changes
                if ranges is None or key in ranges
            ]
            if matching:
                found.append((revision, matching))
                size_bytes += sum(len(change[2]) + len(change[3] or b"") for change in matching)
            if rows >= max_rows or size_bytes >= max_bytes:
                return found, revision
        return found, self.revision
