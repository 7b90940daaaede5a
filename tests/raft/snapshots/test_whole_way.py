"""From a leader's store to a follower's: checkpoint, transfer, decision, installation; while the leader goes on."""

import asyncio
from pathlib import Path

from kvorum.pb.internal_pb2 import MembershipState
from kvorum.pb.rpc_pb2 import HashKVRequest, HashKVResponse, PutRequest
from node.apply.checkpoint import Checkpoints
from node.apply.contents import read_apart
from node.apply.host import ProcessHost
from node.apply.lease import Lessor
from node.apply.mvcc.store import Store
from node.child import Role
from node.raft.core import Message, MessageType
from node.raft.snapshots.outgoing import Outgoing
from node.raft.snapshots.places import FIGURES, Files, settle
from tests.apply.entries import MachineUnderTest, batch, founding, normal
from tests.apply.mvcc_store import IDENTITY, finish
from tests.apply.shell import Lines, child_context
from tests.apply.test_checkpoint import aside
from tests.raft.peers.members import run, until
from tests.raft.snapshots.snapshots import FOLLOWER, LEADER, TERM
from tests.raft.snapshots.test_sending import Follower, Processes

MIB = 1 << 20


def hash_kv(store: Store) -> tuple[int, int]:
    reading = store.begin_hash_kv(HashKVRequest().SerializeToString())
    reply = HashKVResponse.FromString(finish(reading, 1000))
    return reply.hash, reply.hash_revision


def test_the_follower_has_the_leader_s_store(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "leader").mkdir()
        leader = MachineUnderTest(tmp_path / "leader" / "db")
        (tmp_path / "leader" / "snap").mkdir()
        checkpoints = Checkpoints(
            leader.database,
            str(tmp_path / "leader" / "snap"),
            Lines().logger,
            run_aside=aside,
            read=read_apart,
            now=asyncio.get_running_loop().time,
            free_bytes=lambda: 1 << 40,
            took=lambda _: None,
        )
        hashes = {}

        def write() -> None:
            index = leader.machine.applied_index + 1
            requests = [PutRequest(key=b"k%d-%d" % (index, i), value=b"v" * 50_000) for i in range(20)]
            leader.execute(normal(batch(*requests)))
            hashes[index] = hash_kv(leader.store)

        leader.execute(founding())
        for _ in range(20):
            write()

        outgoing = Outgoing()
        assert outgoing.snapshot(0.0, 0) is None
        number = outgoing.ask()
        assert number is not None
        checkpoints.ask(number)
        payload = None
        while payload is None:
            write()
            payload = checkpoints.poll()
            await asyncio.sleep(0)
        made = outgoing.on_checkpoint(payload, 0.0)
        assert made is not None
        snapshot = outgoing.snapshot(0.0, 0)
        assert snapshot is made
        message = Message(MessageType.SNAP, FOLLOWER, LEADER, TERM, snapshot=snapshot)

        async with Follower(tmp_path / "follower" / "data" / "member") as follower:
            processes = Processes(follower)
            follower.way.cut_at = [10 * MIB]
            processes.sending.send(message, outgoing.begin(snapshot, FOLLOWER))
            write()
            await until(lambda: bool(processes.told))
            assert processes.told == [(FOLLOWER, True)]
            outgoing.end(FOLLOWER, 0.0)
            (received,) = follower.under_test.received
            assert received == message
            follower.under_test.receiver.decide(snapshot.index)
            processes.sending.close()

        for path in outgoing.expire(1e9):
            Files().remove(path)
        assert list((tmp_path / "leader" / "snap").iterdir()) == []

        child = child_context(tmp_path / "follower" / "data", Role.APPLY)
        log = Lines()
        host = ProcessHost(child.config.db_path, child.config.snap_path, child.lifeline, log.logger)
        settle(child.config.snap_path, snapshot.index, Files())
        store = host.open_store(Lessor(), IDENTITY)
        assert store.cursor.index == snapshot.index
        assert hash_kv(store) == hashes[snapshot.index]
        assert [path.name for path in Path(child.config.snap_path).iterdir()] == [FIGURES], "raft takes it at its start"
        state = MembershipState.FromString(snapshot.data)
        assert [member.ID for member in state.members] == [member.ID for member in leader.membership.members()]
        store.close()
        host.close()
        child.lifeline.close()
        leader.close()

    run(test)
