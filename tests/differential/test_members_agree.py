"""What every member of a cluster must make the same of, shown by their hashes."""

import pytest

from kvorum import errors
from kvorum.pb.rpc_pb2 import CompactionRequest, HashKVRequest, PutRequest, RangeRequest, TxnRequest
from loadtest.launcher import Kind
from tests.calls import Api
from tests.differential.side import put_op, range_op
from tests.servers import SUBJECT, start_kvorum_cluster


@pytest.mark.skipif(SUBJECT is Kind.REFERENCE, reason="Z5")
def test_a_transaction_that_fails_changes_no_member() -> None:
    with start_kvorum_cluster() as cluster, Api(cluster.addresses[0]) as first:
        for _ in range(3):
            revision = first(PutRequest(key=b"a")).header.revision
        first(CompactionRequest(revision=revision))
        for asked, error in ((1, errors.COMPACTED), (revision + 9, errors.FUTURE_REV)):
            txn = TxnRequest(success=[put_op(b"b"), range_op(b"a", revision=asked)])
            for address in cluster.addresses:
                with Api(address) as api:
                    assert api.outcome(txn) == error
        hashes = set()
        for address in cluster.addresses:
            with Api(address) as api:
                assert api(RangeRequest(key=b"b")).header.revision == revision
                hashes.add(api(HashKVRequest()).hash)
        assert len(hashes) == 1
