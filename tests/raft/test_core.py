"""The parts of the consensus core by themselves. How they work together stands in the traces."""

import gc
from collections.abc import Callable
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.raft.core import (
    APPEND_THREAD,
    NO_LIMIT,
    ChangeType,
    ConfChange,
    Config,
    ConfState,
    Entry,
    HardState,
    LogLevel,
    MemoryStorage,
    Message,
    MessageType,
    NotFromStorage,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    ReadOnly,
    Role,
    Snapshot,
    Transition,
    decode_change,
    decode_conf_state,
    encode_change,
    encode_conf_state,
)
from node.raft.core.log import RaftLog
from node.raft.core.messages import encoded_size
from node.raft.core.progress import Inflights, Progress, ProgressState
from node.raft.core.quorum import joint_committed
from node.raft.core.tracker import Tracker

ids = st.integers(1, (1 << 64) - 3)
members = st.frozensets(st.integers(1, 9), max_size=9)


def quiet(level: LogLevel, text: str) -> None:
    """Log lines are the traces' business."""


def entries(first: int, terms: list[int]) -> list[Entry]:
    """Entries without a gap, their data as long as their term is high."""
    return [(term, first + place, 0, b"x" * term) for place, term in enumerate(terms)]


def single_voter() -> tuple[RawNode, MemoryStorage]:
    storage = MemoryStorage()
    storage.install(Snapshot(1, 1, ConfState((1,))))
    config = Config(id=1, election_ticks=10, heartbeat_ticks=1, applied=1)
    return RawNode(config, storage, storage.hard_state, ConfState((1,)), Random(1)), storage


def run(node: RawNode, storage: MemoryStorage) -> list[Entry]:
    """Do all there is to do; returns what was to be applied."""
    applied: list[Entry] = []
    while node.has_ready():
        ready = node.ready()
        if ready.hard_state is not None:
            storage.hard_state = ready.hard_state
        storage.append(ready.entries)
        applied += ready.committed
        node.advance()
    return applied


class TestConfig:
    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"id": 0}, "a member cannot have id 0"),
            ({"id": APPEND_THREAD}, "cannot have id"),
            ({"heartbeat_ticks": 0}, "heartbeat tick must be greater than 0"),
            ({"election_ticks": 1}, "election tick must be greater than heartbeat tick"),
            ({"max_inflight_messages": 0}, "max inflight messages must be greater than 0"),
            ({"max_message_bytes": 10, "max_inflight_bytes": 9}, "max inflight bytes must be >= max message size"),
            ({"read_only": ReadOnly.LEASE_BASED}, "check quorum must be enabled"),
        ],
    )
    def test_values_that_do_not_fit_together(self, options: dict[str, int], reason: str) -> None:
        right = {"id": 1, "election_ticks": 10, "heartbeat_ticks": 1}
        with pytest.raises(ValueError, match=reason):
            Config(**{**right, **options})  # type: ignore[arg-type]  # the values are wrong on purpose


class TestCodec:
    @given(st.lists(st.tuples(st.sampled_from(ChangeType), ids), max_size=5), st.sampled_from(Transition), st.binary())
    def test_changes(self, changes: list[tuple[ChangeType, int]], transition: Transition, context: bytes) -> None:
        change = ConfChange(tuple(changes), transition, context)
        assert decode_change(encode_change(change)) == change

    def test_leaving_a_joint_configuration_takes_no_bytes(self) -> None:
        assert encode_change(ConfChange()) == b""
        assert decode_change(b"").leaves_joint

    @given(st.tuples(*[st.lists(ids, max_size=4).map(tuple)] * 4), st.booleans())
    def test_configurations(self, sets: tuple[tuple[int, ...], ...], auto_leave: bool) -> None:
        state = ConfState(sets[0], sets[1], sets[2], sets[3], auto_leave)
        assert decode_conf_state(encode_conf_state(state)) == state

    @given(st.binary(max_size=40))
    def test_other_bytes_are_refused_or_read(self, data: bytes) -> None:
        decoders: tuple[Callable[[bytes], object], ...] = (decode_change, decode_conf_state)
        for decode in decoders:
            with suppress(ValueError):
                decode(data)

    def test_another_version_is_refused(self) -> None:
        change = encode_change(ConfChange(((ChangeType.REMOVE, 1),)))
        state = encode_conf_state(ConfState((1,)))
        with pytest.raises(ValueError, match="format 2"):
            decode_change(b"\x02" + change[1:])
        with pytest.raises(ValueError, match="format 2"):
            decode_conf_state(b"\x02" + state[1:])
        with pytest.raises(ValueError, match="1 membership changes in"):
            decode_change(change[:-1])
        with pytest.raises(ValueError, match="1 members in"):
            decode_conf_state(state[:-1])

    @given(st.integers(0, 1 << 63), st.integers(0, 1 << 63), st.integers(0, 2), st.binary(max_size=300))
    def test_the_size_of_an_entry_is_that_of_its_protocol_buffer(
        self, term: int, index: int, type_: int, data: bytes
    ) -> None:
        def varint(value: int) -> bytes:
            parts = bytearray()
            while value > 0x7F:
                parts.append(value & 0x7F | 0x80)
                value >>= 7
            parts.append(value)
            return bytes(parts)

        encoded = b"\x08" + varint(type_) + b"\x10" + varint(term) + b"\x18" + varint(index)
        if data:
            encoded += b"\x22" + varint(len(data)) + data
        assert encoded_size((term, index, type_, data)) == len(encoded)


class TestTracker:
    @given(members, members, st.dictionaries(st.integers(1, 9), st.integers(0, 20)))
    def test_what_is_committed(self, incoming: frozenset[int], outgoing: frozenset[int], acked: dict[int, int]) -> None:
        tracker = Tracker(10)
        tracker.configuration.incoming = set(incoming)
        tracker.configuration.outgoing = set(outgoing) if incoming else set()
        for member in range(1, 10):
            tracker.progress[member] = tracker.new_progress(0, is_learner=False)
            tracker.progress[member].match = acked.get(member, 0)
        assert tracker.committed() == joint_committed(incoming, tracker.configuration.outgoing, acked)


class TestInflights:
    @given(
        st.integers(1, 4),
        st.integers(1, 30),
        st.lists(st.tuples(st.sampled_from(("add", "free")), st.integers(0, 20))),
    )
    def test_like_a_list(self, max_messages: int, max_bytes: int, steps: list[tuple[str, int]]) -> None:
        inflights = Inflights(max_messages, max_bytes)
        model: list[tuple[int, int]] = []
        index = 0
        for what, value in steps:
            if what == "free":
                inflights.free_through(value)
                model = [message for message in model if message[0] > value]
            elif not inflights.full():
                index += 1
                inflights.add(index, value)
                model.append((index, value))
            assert len(inflights) == len(model)
            assert inflights.full() == (len(model) >= max_messages or sum(size for _, size in model) >= max_bytes)


class TestProgress:
    def progress(self) -> Progress:
        return Progress(5, 10, Inflights(10), is_learner=False, recent_active=True)

    def test_a_stale_refusal_is_ignored(self) -> None:
        progress = self.progress()
        assert not progress.maybe_decrease(8, 3)  # the last probe was behind 9
        progress.become_replicate()
        assert not progress.maybe_decrease(5, 3)  # matched since
        assert progress.next == 6

    def test_a_refused_probe_goes_back_to_the_hint_but_not_behind_what_matches(self) -> None:
        progress = self.progress()
        assert progress.maybe_decrease(9, 7)
        assert progress.next == 8
        assert progress.maybe_decrease(7, 2)
        assert progress.next == 6

    def test_a_refused_stream_begins_again_behind_what_matches(self) -> None:
        progress = self.progress()
        progress.become_replicate()
        progress.sent_entries(4, 100)
        assert progress.next == 10
        assert progress.maybe_decrease(9, 9)
        assert (progress.next, progress.state) == (6, ProgressState.REPLICATE)

    def test_the_commit_index_is_told_once(self) -> None:
        progress = self.progress()
        progress.become_replicate()
        progress.sent_entries(4, 100)
        assert progress.can_bump_commit(8)
        progress.sent_commit = 8
        assert not progress.can_bump_commit(8)
        assert progress.can_bump_commit(20)
        progress.sent_commit = 20
        assert not progress.can_bump_commit(21)  # it has no entries beyond 9


class TestLog:
    """The log against a plain list, whatever part of it is on disk."""

    @given(st.data())
    def test_like_a_list(self, data: st.DataObject) -> None:
        storage = MemoryStorage()
        log = RaftLog(storage, NO_LIMIT, quiet)
        model: list[Entry] = []
        written: list[list[Entry]] = []  # handed to the disk, not there yet
        term = 1
        for _ in range(data.draw(st.integers(0, 30))):
            match data.draw(st.sampled_from(("append", "append", "replace", "hand out", "write", "commit", "read"))):
                case "append":
                    new = entries(len(model) + 1, [term] * data.draw(st.integers(1, 3)))
                    log.append(new)
                    model += new
                case "replace" if len(model) > log.committed:
                    term += 1
                    first = data.draw(st.integers(log.committed + 1, len(model)))
                    before = model[first - 2][0] if first > 1 else 0
                    new = entries(first, [term] * data.draw(st.integers(1, 3)))
                    assert log.maybe_append(before, first - 1, new, 0) == new[-1][1]
                    model[first - 1 :] = new
                    written = []  # their answers come in an older term
                case "hand out":
                    part = log.unstable.next_entries()
                    storage.append(part)
                    log.unstable.accept()
                    if part:
                        written.append(part)
                case "write" if written:
                    last = written.pop(0)[-1]
                    log.stable_to(last[1], last[0])
                case "commit" if model:
                    log.commit_to(data.draw(st.integers(1, len(model))))
                case _ if model:
                    low = data.draw(st.integers(1, len(model)))
                    high = data.draw(st.integers(low + 1, len(model) + 1))
                    assert log.read(low, high, NO_LIMIT) == model[low - 1 : high - 1]
                    limit = data.draw(st.integers(0, 40))
                    limited = log.read(low, high, limit)
                    assert limited == model[low - 1 : low - 1 + len(limited)]
                    sizes = [encoded_size(entry) for entry in model[low - 1 : high - 1]]
                    fitting = sum(sum(sizes[: count + 1]) <= limit for count in range(len(sizes)))
                    assert len(limited) == max(1, fitting)
            assert log.last_index() == len(model)
            assert [log.term_of(index) for index in range(1, len(model) + 2)] == [entry[0] for entry in model] + [None]

    def test_a_hint_skips_the_terms_that_the_leader_does_not_have(self) -> None:
        storage = MemoryStorage()
        storage.append(entries(1, [1, 3, 3, 4, 4, 5, 5, 5, 6]))
        log = RaftLog(storage, NO_LIMIT, quiet)
        assert log.find_conflict(8, 3) == (3, 3)
        assert log.find_conflict(9, 6) == (9, 6)
        assert log.find_conflict(9, 0) == (0, 0)
        storage.compact(4)
        assert log.find_conflict(9, 3) == (3, 0)
        assert log.find_conflict(12, 9) == (12, 0)

    def test_what_is_committed_is_never_replaced(self) -> None:
        storage = MemoryStorage()
        storage.append(entries(1, [1, 1]))
        log = RaftLog(storage, NO_LIMIT, quiet)
        log.commit_to(2)
        with pytest.raises(AssertionError, match="conflicts with the committed one"):
            log.maybe_append(1, 1, entries(2, [2]), 2)
        with pytest.raises(AssertionError, match="was it damaged, cut or lost"):
            log.commit_to(3)


class TestNode:
    def test_a_single_voter_commits_alone(self) -> None:
        node, storage = single_voter()
        node.campaign()
        run(node, storage)
        node.propose(b"one")
        node.propose(b"two")
        assert run(node, storage) == [(1, 3, 0, b"one"), (1, 4, 0, b"two")]
        assert storage.hard_state == HardState(1, 1, 4)

    def test_without_a_leader_nothing_is_proposed(self) -> None:
        node, _ = single_voter()
        with pytest.raises(ProposalDropped):
            node.propose(b"one")

    def test_what_only_storage_may_say(self) -> None:
        node, _ = single_voter()
        with pytest.raises(NotFromStorage):
            node.step(Message(MessageType.STORAGE_APPEND_RESP, 1, 2, index=1, log_term=1))
        with pytest.raises(PeerNotFound):
            node.step(Message(MessageType.APP_RESP, 1, 2, 1, index=1))

    def test_malformed_messages_are_dropped(self) -> None:
        said: list[tuple[LogLevel, str]] = []
        storage = MemoryStorage()
        state = ConfState((1, 2))
        config = Config(id=1, election_ticks=10, heartbeat_ticks=1)
        node = RawNode(config, storage, HardState(1, 0, 0), state, Random(1), lambda *line: said.append(line))
        read = Message(MessageType.READ_INDEX, 1, 2)
        broken = [
            Message(MessageType.APP, 1, 2, 1, entries=entries(2, [1])),
            Message(MessageType.APP, 1, 2, 1, entries=entries(1, [1]) + entries(3, [1])),
            Message(MessageType.SNAP, 1, 2, 1),
            Message(MessageType.HEARTBEAT, 1, 2),
            Message(MessageType.READ_INDEX_RESP, 1, 2, 1, index=5),
        ]
        for message in broken:
            node.step(message)
            assert said[-1][0] is LogLevel.ERROR
            assert "invalid format of Msg" in said[-1][1]
        assert node.ready().messages == []
        node.advance()
        node.campaign()
        run(node, storage)
        node.step(Message(MessageType.VOTE_RESP, 1, 2, 2))
        node.step(read)
        assert said[-1] == (LogLevel.ERROR, "1 invalid format of MsgReadIndex, entries count: 0")
        for data in (b"\x01", b"\x09\0\0\0", b"\x01\x09\0\0"):
            with pytest.raises(ProposalDropped):
                node.step(Message(MessageType.PROP, 1, 2, entries=[(0, 0, 2, data)]))
            assert "cannot read a proposed conf change" in said[-1][1]
        with pytest.raises(ProposalDropped):
            node.step(Message(MessageType.PROP, 1, 2))

    def test_two_readys_need_an_advance_between_them(self) -> None:
        node, _ = single_voter()
        node.campaign()
        node.ready()
        with pytest.raises(AssertionError, match="two Readys"):
            node.ready()

    def test_a_commit_index_beyond_the_log_ends_the_member(self) -> None:
        with pytest.raises(AssertionError, match="commit index 7 is not in the log"):
            storage = MemoryStorage()
            RawNode(
                Config(id=1, election_ticks=10, heartbeat_ticks=1),
                storage,
                HardState(1, 0, 7),
                ConfState((1,)),
                Random(1),
            )

    def test_election_timeouts_are_drawn_anew_and_lie_between_one_and_two(self) -> None:
        storage = MemoryStorage()
        config = Config(id=1, election_ticks=10, heartbeat_ticks=1)
        node = RawNode(config, storage, HardState(0, 0, 0), ConfState((1, 2)), Random(1))
        timeouts: set[int] = set()
        for _ in range(200):
            ticks = 0
            term = node.status().term
            while node.status().term == term:
                node.tick()
                ticks += 1
            timeouts.add(ticks)
        assert timeouts == set(range(10, 20))

    def test_a_snapshot_that_is_not_there_yet_or_that_nobody_waits_for_is_not_sent(self) -> None:
        class Slow(MemoryStorage):
            def snapshot(self) -> Snapshot | None:
                return None

        storage = Slow()
        state = ConfState((1, 2, 3))
        storage.install(Snapshot(1, 1, state))
        storage.append(entries(2, [1, 1]))
        config = Config(id=1, election_ticks=10, heartbeat_ticks=1, applied=1, check_quorum=True)
        said: list[str] = []
        node = RawNode(config, storage, HardState(1, 1, 3), state, Random(1), lambda level, text: said.append(text))
        node.campaign()
        run(node, storage)
        node.step(Message(MessageType.VOTE_RESP, 1, 2, 2))
        run(node, storage)
        node.step(Message(MessageType.APP_RESP, 1, 2, 2, index=4))
        run(node, storage)
        storage.compact(4)
        node.step(Message(MessageType.APP_RESP, 1, 3, 2, index=3, reject=True, reject_hint=1, log_term=1))
        assert said[-1] == "1 failed to send snapshot to 3 because snapshot is temporarily unavailable"
        for _ in range(10):
            node.tick()
        node.propose(b"x")
        assert said[-1] == "ignore sending snapshot to 3 since it is not recently active"
        assert not [message for message in node.ready().messages if message.type is MessageType.SNAP]

    def test_a_log_may_be_compacted_as_far_as_entries_were_handed_out(self) -> None:
        storage = MemoryStorage()
        state = ConfState((1, 2))
        storage.install(Snapshot(1, 1, state))
        config = Config(id=1, election_ticks=10, heartbeat_ticks=1, applied=1, async_storage_writes=True)
        node = RawNode(config, storage, HardState(1, 0, 1), state, Random(1))
        node.step(Message(MessageType.APP, 1, 2, 1, 1, 1, 3, entries=entries(2, [1, 1])))
        ready = node.ready()
        storage.append(ready.entries)
        assert ready.hard_state is not None
        storage.hard_state = ready.hard_state
        for response in ready.messages[0].responses:
            if response.to == 1:
                node.step(response)
        assert [entry[1] for entry in node.ready().committed] == [2, 3]
        storage.compact(3)  # before the core hears that they are applied
        node.campaign()
        assert node.status().role is Role.CANDIDATE

    def test_an_entry_leaves_no_cyclic_garbage(self) -> None:
        node, storage = single_voter()
        node.campaign()
        run(node, storage)
        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                node.propose(b"x")
                node.read_index(b"context")
                node.tick()
                run(node, storage)
            assert gc.collect() == 0
        finally:
            gc.enable()
