"""Where kvorum (version 3.7 of the API) and the reference (3.5.1) may differ: the one table, and its use.

A comparison leaves out exactly what a row here names. Everything else must be equal, apart from what belongs to one
server: ids of cluster and member, the raft term, times.
"""

from typing import Final

from kvorum import errors
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import HashKVResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse

EXCEPTIONS: Final = {
    "X1": "Range with an unknown sort_order: 3.5.1 accepts it",
    "X2": "Range with keys_only: 3.5.1 keeps `lease`",
    "X3": "RangeStream: absent in 3.5.1",
    "X4": "HashKV at the compacted revision: 3.5.1 answers Compacted",
    "X5": "HashKV: no hash_revision in 3.5.1, and none of the hashes stored at the newest compactions",
    "X6": "compaction at a tombstone: 3.5.1 loses the row",
    "X9": "watch from a negative revision: 3.5.1 serves it",
    "X12": "watch progress without watchers: 3.5.1 answers",
    "X13": "watch progress before a future start: 3.5.1 answers",
    "X14": "watch progress on request: 3.5.1 may overtake events",
    "X16": "watch: 3.5.1 may repeat events after a slow stream and lose events around a compaction",
    "X17": "--listen-client-http-urls: absent in 3.5.1",
    "X18": "what a learner does not serve: 3.5.1 answers Unavailable, also to grpc health",
    "X19": "MemberAdd under the strict rules: 3.5.1 wants all members connected, not a quorum",
    "X26": "NOSPACE: 3.5.1 does not look at puts in nested transactions",
    "X29": "Downgrade: CANCEL with none running, the version's text; ENABLE and CANCEL do it but time out in 3.5.1",
    "X30": "Status: storageVersion, dbSizeQuota and downgradeInfo absent in 3.5.1",
    "X31": "Snapshot: version absent in 3.5.1",
    "X32": "HTTP: /version without storage, no /livez and /readyz in 3.5.1",
    "X33": "JSON: errors, 404 and 405, hashkv, base64 leniency",
    "X35": "flags: --max-learners is absent in 3.5.1",
    "X38": "MemberUpdate of a learner: 3.5.1 makes a voter of it",
    "Z1": "Range with an unknown sort_target crashes 3.5.1",
    "Z2": "Alarm with an unknown action crashes the reference",
    "Z3": "MemberUpdate with a URL that does not parse crashes the reference",
    "Z4": "a write txn that fails halfway crashes the reference: ignore_* on a key that the same txn deletes",
    "Z5": "a write txn whose range fails (revision compacted or ahead): at the reference the member asked refuses it, "
    "the others execute it without the range, and the stores differ from then on (etcd issue 18667)",
    "Q1": "HashKV(0) after Compact(0) answers a stored hash of an empty store",
    "Q2": "the order of equal sort values is not stable",
    "Q4": "the id of a compacted watch stays taken until the client cancels it",
    "G5": "client-api-version that is not UTF-8 crashes 3.5.1",
    "G11": "gRPC with another content type or method: 3.5.1 resets the stream",
    "PU1": "Put in a transaction with an unknown lease on an absent key: 3.5.1 looks for the key first",
    "MA11": "Alarm with an unknown type crashes 3.5.1",
    "MA25": "MoveLeader to a member that is down: the reference waits for the client's deadline, which ends the call",
    "M15": "MemberRemove of the only voter without the strict rules crashes the reference, again at each start",
    "H5": "HashKV over no live key: the rows counted depend on how far a background compaction has come",
}

LEASE_BEFORE_KEY: Final = (errors.LEASE_NOT_FOUND, errors.KEY_NOT_FOUND)
"""PU1: how the subject and the reference answer."""


def normalise_range(request: RangeRequest, reply: RangeResponse) -> None:
    """Clears in place what may differ in the reply to that range."""
    if request.keys_only and request.sort_target != RangeRequest.VALUE:
        for kv in reply.kvs:
            kv.ClearField("lease")  # X2
    if request.sort_order == RangeRequest.NONE and request.sort_target == RangeRequest.KEY:
        return
    # Q2: with equal sort values the order, and at a limit the choice, is free; the values in their order are not.
    kvs = list(reply.kvs)
    order = [_sort_value(request, kv) for kv in kvs]
    cut = order[-1] if reply.more and kvs else None
    del reply.kvs[:]
    for sorted_by in dict.fromkeys(order):
        group = sorted((kv for kv in kvs if _sort_value(request, kv) == sorted_by), key=lambda kv: kv.key)
        if sorted_by == cut:
            for kv in group:  # the limit took some of the equal ones: which, is free
                kv.Clear()
        reply.kvs.extend(group)


def _sort_value(request: RangeRequest, kv: KeyValue) -> bytes | int:
    """What `kv` was sorted by, as far as the reply still shows it."""
    match request.sort_target:
        case RangeRequest.VERSION:
            return kv.version
        case RangeRequest.CREATE:
            return kv.create_revision
        case RangeRequest.MOD:
            return kv.mod_revision
        case RangeRequest.VALUE:
            return b"" if request.keys_only else kv.value
        case _:
            return kv.key


def normalise_txn(request: TxnRequest, reply: TxnResponse) -> None:
    """The same for each range of the branch that was taken."""
    taken = request.success if reply.succeeded else request.failure
    for ask, answer in zip(taken, reply.responses, strict=True):
        if ask.HasField("request_range"):
            normalise_range(ask.request_range, answer.response_range)
        elif ask.HasField("request_txn"):
            normalise_txn(ask.request_txn, answer.response_txn)


def normalise_hash(reply: HashKVResponse) -> None:
    """Clears what 3.5.1 does not send."""
    reply.ClearField("hash_revision")  # X5
