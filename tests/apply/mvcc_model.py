"""The store's rules in the plainest Python there is: a list of all versions ever, searched from end to end."""

from dataclasses import dataclass, field

import google_crc32c

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    ResponseHeader,
    ResponseOp,
    TxnRequest,
    TxnResponse,
)
from tests.apply.mvcc_store import IDENTITY

LEASES = (1, 2, 3, -7)


@dataclass
class Version:
    """One row of history: `kv` is None for a tombstone."""

    main: int
    sub: int
    key: bytes
    kv: KeyValue | None


@dataclass
class Model:
    versions: list[Version] = field(default_factory=list)
    revision: int = 1
    compacted: int = -1

    def copy(self) -> "Model":
        return Model(list(self.versions), self.revision, self.compacted)

    def header(self) -> ResponseHeader:
        return ResponseHeader(
            cluster_id=IDENTITY.cluster_id,
            member_id=IDENTITY.member_id,
            revision=self.revision,
            raft_term=IDENTITY.raft_term,
        )

    def live(self, at: int | None = None) -> dict[bytes, KeyValue]:
        """The live keys in order, now or at a revision."""
        state: dict[bytes, KeyValue | None] = {}
        for version in self.versions:
            if at is None or version.main <= at:
                state[version.key] = version.kv
        return {key: kv for key, kv in sorted(state.items()) if kv is not None}

    def within(self, key: bytes, range_end: bytes, at: int | None = None) -> list[KeyValue]:
        if not range_end:
            chosen = [kv for k, kv in self.live(at).items() if k == key]
        elif range_end == b"\0":
            chosen = [kv for k, kv in self.live(at).items() if k >= key]
        else:
            chosen = [kv for k, kv in self.live(at).items() if key <= k < range_end]
        return chosen

    # --- range -------------------------------------------------------------------------------------------------------

    def range(self, request: RangeRequest) -> RangeResponse:
        if request.revision > self.revision:
            raise ApiError(errors.FUTURE_REV)
        if 0 < request.revision < self.compacted:
            raise ApiError(errors.COMPACTED)
        found = self.within(request.key, request.range_end, request.revision if request.revision > 0 else None)
        response = RangeResponse(header=self.header(), count=len(found))
        if request.count_only:
            return response
        filters = (
            ("mod_revision", request.min_mod_revision, request.max_mod_revision),
            ("create_revision", request.min_create_revision, request.max_create_revision),
        )
        kept = [
            kv
            for kv in found
            if all(
                (not least or getattr(kv, name) >= least) and (not most or getattr(kv, name) <= most)
                for name, least, most in filters
            )
        ]
        filtered = any(least or most for _, least, most in filters)
        name = ("key", "version", "create_revision", "mod_revision", "value")[request.sort_target]
        if request.sort_order == 0 and not filtered and request.limit > 0:
            kept = kept[: request.limit + 1]
        kept.sort(key=lambda kv: getattr(kv, name), reverse=request.sort_order == 2)
        if request.limit > 0 and len(kept) > request.limit:
            response.more = True
            kept = kept[: request.limit]
        for kv in kept:
            shown = response.kvs.add()
            shown.CopyFrom(kv)
            if request.keys_only:
                shown.ClearField("value")
                if request.sort_target != RangeRequest.VALUE:
                    shown.ClearField("lease")
        return response

    # --- writes ------------------------------------------------------------------------------------------------------

    def put(self, request: PutRequest) -> PutResponse:
        response = self.txn(TxnRequest(success=[{"request_put": request}]))
        reply = response.responses[0].response_put
        reply.header.CopyFrom(response.header)
        return reply

    def delete_range(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        response = self.txn(TxnRequest(success=[{"request_delete_range": request}]))
        reply = response.responses[0].response_delete_range
        reply.header.CopyFrom(response.header)
        return reply

    def txn(self, request: TxnRequest) -> TxnResponse:
        path = self.path_of(request)
        self.check(path, puts=True)
        self.check(path, puts=False)
        written = len(self.versions)
        response = self.execute(path, self.revision + 1, written)
        response.header.CopyFrom(self.header())
        return response

    def path_of(self, request: TxnRequest) -> list[object]:
        succeeded = all(self.holds(compare) for compare in request.compare)
        steps: list[object] = [succeeded]
        for operation in request.success if succeeded else request.failure:
            message = getattr(operation, operation.WhichOneof("request") or "")
            steps.append(self.path_of(message) if isinstance(message, TxnRequest) else message)
        return steps

    def holds(self, compare: Compare) -> bool:
        name = ("version", "create_revision", "mod_revision", "value", "lease")[compare.target]
        found = self.within(compare.key, compare.range_end)
        if not found and name == "value":
            return False
        wanted = getattr(compare, name)
        results = {
            Compare.EQUAL: lambda x: x == wanted,
            Compare.NOT_EQUAL: lambda x: x != wanted,
            Compare.GREATER: lambda x: x > wanted,
            Compare.LESS: lambda x: x < wanted,
        }
        return all(results[compare.result](getattr(kv, name)) for kv in found or [KeyValue()])

    def check(self, path: list[object], *, puts: bool) -> None:
        for step in path[1:]:
            if isinstance(step, list):
                self.check(step, puts=puts)
            elif isinstance(step, PutRequest) and puts:
                if step.lease and step.lease not in LEASES:
                    raise ApiError(errors.LEASE_NOT_FOUND)
                if (step.ignore_value or step.ignore_lease) and step.key not in self.live():
                    raise ApiError(errors.KEY_NOT_FOUND)
            elif isinstance(step, RangeRequest) and not puts and step.revision:
                if step.revision > self.revision:
                    raise ApiError(errors.FUTURE_REV)
                if step.revision < self.compacted:
                    raise ApiError(errors.COMPACTED)

    def execute(self, path: list[object], main: int, written: int) -> TxnResponse:
        response = TxnResponse(header=ResponseHeader(), succeeded=bool(path[0]))
        for step in path[1:]:
            operation: ResponseOp = response.responses.add()
            if isinstance(step, list):
                operation.response_txn.CopyFrom(self.execute(step, main, written))
            elif isinstance(step, RangeRequest):
                operation.response_range.CopyFrom(self.range(step))
                operation.response_range.header.CopyFrom(ResponseHeader(revision=self.revision))
            elif isinstance(step, PutRequest):
                operation.response_put.CopyFrom(self._put(step, main, written))
            elif isinstance(step, DeleteRangeRequest):
                operation.response_delete_range.CopyFrom(self._delete(step, main, written))
        return response

    def _put(self, request: PutRequest, main: int, written: int) -> PutResponse:
        before = self.live().get(request.key)
        kv = KeyValue(key=request.key, create_revision=main, mod_revision=main, version=1)
        kv.value = request.value
        kv.lease = request.lease
        if before is not None:
            kv.create_revision = before.create_revision
            kv.version = before.version + 1
            if request.ignore_value:
                kv.value = before.value
            if request.ignore_lease:
                kv.lease = before.lease
        self.versions.append(Version(main, len(self.versions) - written, request.key, kv))
        self.revision = main
        return PutResponse(header=ResponseHeader(revision=main), prev_kv=before if request.prev_kv else None)

    def _delete(self, request: DeleteRangeRequest, main: int, written: int) -> DeleteRangeResponse:
        found = self.within(request.key, request.range_end)
        for kv in found:
            self.versions.append(Version(main, len(self.versions) - written, kv.key, None))
            self.revision = main
        return DeleteRangeResponse(
            header=ResponseHeader(revision=self.revision),
            deleted=len(found),
            prev_kvs=found if request.prev_kv else [],
        )

    # --- compaction, history, hash -----------------------------------------------------------------------------------

    def compact(self, revision: int) -> None:
        if revision <= self.compacted:
            raise ApiError(errors.COMPACTED)
        if revision > self.revision:
            raise ApiError(errors.FUTURE_REV)
        self.compacted = revision

    def last_index(self, key: bytes, at: int) -> int:
        """Where the last version of a key up to a revision lies; -1 for none."""
        return max((i for i, v in enumerate(self.versions) if v.key == key and v.main <= at), default=-1)

    def survives(self, index: int) -> bool:
        """Whether a compaction to the compacted revision leaves a version."""
        version = self.versions[index]
        if version.main > self.compacted:
            return True
        if self.last_index(version.key, self.compacted) != index:
            return False
        return version.kv is not None or version.main == self.compacted

    def history(self, start: int, end: int) -> list[tuple[int, list[tuple[bool, bytes, bytes, bytes | None]]]]:
        """The events of [start, end] with previous values."""
        if start < self.compacted:
            raise ApiError(errors.COMPACTED)
        events: dict[int, list[tuple[bool, bytes, bytes, bytes | None]]] = {}
        for index, version in enumerate(self.versions):
            if not start <= version.main <= end or not self.survives(index):
                continue
            before = self.live(version.main - 1).get(version.key) if version.main - 1 >= self.compacted else None
            kv = version.kv or KeyValue(key=version.key, mod_revision=version.main)
            events.setdefault(version.main, []).append(
                (
                    version.kv is None,
                    version.key,
                    kv.SerializeToString(deterministic=True),
                    None if before is None else before.SerializeToString(deterministic=True),
                )
            )
        return list(events.items())

    def hash_kv(self, revision: int) -> int:
        """By the definition: all rows first, then the rules that leave some out."""
        live = set(self.live(revision)) if revision > 0 else set()
        data = b"key"
        for index, version in enumerate(self.versions):
            if version.main > revision or not self.survives(index):
                continue
            if version.main <= self.compacted and live:
                keeps = version.kv is not None and self.last_index(version.key, revision) == index
                if not keeps:
                    continue
            if version.main == self.compacted and version.kv is None:
                continue
            data += version.main.to_bytes(8, "big") + b"_" + version.sub.to_bytes(8, "big")
            data += b"t" if version.kv is None else b""
            data += (version.kv or KeyValue(key=version.key)).SerializeToString(deterministic=True)
        checksum: int = google_crc32c.value(data)
        return checksum
