"""Leases against a naive model: every lease looked at in every step; the clock jumps, leadership comes and goes."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvorum.errors import ApiError
from node.apply.lease import ATTACHED_TABLE, GAP_S, LEASE_TABLE, RETRY_S, WAIT, Lessor

ELECTION_S = 1.0
SLOT_S = 0.25
IDS = st.integers(1, 6)
KEYS = st.sampled_from([b"a", b"b", b"b\xff", b"c", b"", b"\0"])
# Eighths of a second: exact in binary, so that the model may compare times with ==.
STEPS_S = st.sampled_from([0.125, 0.25, 0.5, 0.875, 1.0, 1.125, 3.0, 60.0])


@dataclass
class Held:
    ttl_s: int
    left_s: float
    keys: set[bytes] = field(default_factory=set)
    asked_at: float | None = None
    fresh: bool = True


class Leases(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.lessor = Lessor()
        self.model: dict[int, Held] = {}
        self.rows: dict[bytes, bytes] = {}
        self.now = 1000.0
        self.primary = False
        self.valid_until = 0.0

    # What the log brings.

    @rule(lease_id=IDS, ttl_s=st.integers(1, 6))
    def grant(self, lease_id: int, ttl_s: int) -> None:
        if lease_id in self.model:
            with pytest.raises(ApiError):
                self.lessor.grant(lease_id, ttl_s)
        else:
            self.lessor.grant(lease_id, ttl_s)
            self.model[lease_id] = Held(ttl_s, ttl_s)

    @rule(lease_id=IDS)
    def revoke(self, lease_id: int) -> None:
        held = self.model.pop(lease_id, None)
        if held is None:
            with pytest.raises(ApiError):
                self.lessor.revoke(lease_id)
            return
        keys = self.lessor.revoke(lease_id)
        assert keys == sorted(held.keys)
        for key in keys:
            self.lessor.detach(key, lease_id)

    @rule(lease_id=IDS, key=KEYS)
    def put(self, lease_id: int, key: bytes) -> None:
        if lease_id not in self.model:
            assert not self.lessor.exists(lease_id)
            return
        self.delete(key)
        self.lessor.attach(key, lease_id)
        self.model[lease_id].keys.add(key)

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        for lease_id, held in self.model.items():
            if key in held.keys:
                self.lessor.detach(key, lease_id)
                held.keys.remove(key)

    @rule()
    def write(self) -> None:
        for row, value in self.lessor.drain_rows():
            if value is None:
                self.rows.pop(row, None)
            else:
                self.rows[row] = value

    @rule()
    def restart(self) -> None:
        self.write()
        tables = (
            [item for item in sorted(self.rows.items()) if item[0][:1] == table]
            for table in (LEASE_TABLE, ATTACHED_TABLE)
        )
        self.lessor = Lessor()
        self.lessor.restore(*tables)
        assert len(self.rows) == len(self.model) + sum(len(held.keys) for held in self.model.values())
        self.primary = False

    # Time and leadership.

    @rule(confirmed_s=STEPS_S)
    def promote(self, confirmed_s: float) -> None:
        self.valid_until = self.now + confirmed_s
        self.lessor.promote(self.now, ELECTION_S, self.valid_until)
        self.primary = True
        self.extend()
        for held in self.model.values():
            held.asked_at = None

    @rule(confirmed_s=STEPS_S)
    def renew_leadership(self, confirmed_s: float) -> None:
        if self.primary:
            self.valid_until = max(self.valid_until, self.now + confirmed_s)
            self.lessor.renew_leadership(self.now, self.now + confirmed_s)

    @rule()
    def demote(self) -> None:
        self.lessor.demote()
        self.primary = False

    def extend(self) -> None:
        for held in self.model.values():
            held.left_s = held.ttl_s + ELECTION_S
            held.fresh = False

    @rule(step_s=STEPS_S)
    def turn(self, step_s: float) -> None:
        begin, self.now = self.now, self.now + step_s
        if self.primary:
            kept_s = max(0.0, min(self.now, self.valid_until) - begin)
            for held in self.model.values():
                held.left_s -= 0.0 if held.fresh else kept_s
                held.fresh = False
            if step_s > GAP_S:
                self.extend()
        self.lessor.turn(self.now)

    @rule(lease_id=IDS)
    def keep_alive(self, lease_id: int) -> None:
        if not self.primary or self.now >= self.valid_until:
            with pytest.raises(ApiError):
                self.lessor.keep_alive(lease_id, self.now)
            return
        held = self.model.get(lease_id)
        if held is None:
            assert self.lessor.keep_alive(lease_id, self.now) == 0
        elif held.asked_at is not None:
            assert self.lessor.keep_alive(lease_id, self.now) == WAIT
        else:
            assert self.lessor.keep_alive(lease_id, self.now) == held.ttl_s
            held.left_s = held.ttl_s
            held.fresh = False

    @rule()
    def expired(self) -> None:
        asked = set(self.lessor.expired(self.now))
        if not self.primary or self.now >= self.valid_until:
            assert asked == set()
            return
        for lease_id, held in self.model.items():
            if held.asked_at is not None:
                assert (lease_id in asked) == (self.now - held.asked_at >= RETRY_S)
            elif lease_id in asked:
                assert held.left_s <= 0, "early"
            else:
                assert held.left_s > -SLOT_S, "late"
            if lease_id in asked:
                held.asked_at = self.now
        assert asked <= self.model.keys()

    # What can be seen at any time.

    @invariant()
    def agrees(self) -> None:
        assert set(self.lessor.leases()) == self.model.keys()
        for lease_id, held in self.model.items():
            assert set(self.lessor.keys_of(lease_id)) == held.keys
        if self.primary:
            self.lessor.turn(self.now)
            order = [self.model[lease_id].left_s for lease_id in self.lessor.leases()]
            assert order == sorted(order)
            for lease_id, held in self.model.items():
                ttl = self.lessor.time_to_live(lease_id, self.now)
                assert ttl.granted_ttl_s == held.ttl_s
                assert ttl.ttl_s < held.left_s <= ttl.ttl_s + 1 or held.left_s <= ttl.ttl_s <= 0


LeasesTest = Leases.TestCase
LeasesTest.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
