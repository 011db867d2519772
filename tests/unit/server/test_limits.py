"""Who is let in: never more than a limit says, and no place is lost, whatever comes in whatever order."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from hermes.config import ServerConfig
from hermes.server.limits import Limits, Refusal, Slot, Step, drop_chance

ADDRESSES = (
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.200",
    "198.51.100.7",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8:1::1",
    "127.0.0.1",
    "",
)


def limits(**config: Any) -> Limits:
    return Limits(ServerConfig.model_validate({"max_startups": "1000", **config}))


def admitted(core: Limits, address: str = "192.0.2.1", *, now: float = 0.0, draw: int = 99) -> Slot:
    outcome = core.admit(now, address, draw)
    assert isinstance(outcome, Slot)
    return outcome


def refused(core: Limits, address: str = "192.0.2.1", *, now: float = 0.0, draw: int = 99) -> tuple[str, float]:
    outcome = core.admit(now, address, draw)
    assert isinstance(outcome, Refusal)
    return outcome.limit, outcome.value


# ---- sshd's MaxStartups


@pytest.mark.parametrize(
    ("startups", "chance"), [(0, 0), (9, 0), (10, 30), (11, 30), (12, 31), (55, 65), (99, 99), (100, 100), (5000, 100)]
)
def test_the_chance_to_be_dropped_is_that_of_sshd(startups: int, chance: int) -> None:
    assert drop_chance(startups, 10, 30, 100) == chance


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 100), st.integers(0, 500), st.integers(0, 1100))
def test_the_chance_grows_with_the_connections(begin: int, rate: int, more: int, startups: int) -> None:
    full = begin + more
    chances = [drop_chance(it, begin, rate, full) for it in range(startups, startups + 3)]
    assert chances == sorted(chances)
    assert all(0 <= it <= 100 for it in chances)
    assert drop_chance(begin - 1, begin, rate, full) == 0
    assert drop_chance(full, begin, rate, full) == 100


def test_those_not_authenticated_are_dropped_at_random_and_then_all() -> None:
    core = limits(max_startups="2:50:4", per_address={"startups": 0}, per_network={"startups": 0})
    admitted(core, draw=0)
    held = admitted(core, draw=0)
    assert refused(core, draw=49) == ("server.max_startups", 2)
    admitted(core, draw=50)
    assert refused(core, draw=74) == ("server.max_startups", 2)
    admitted(core, draw=75)
    assert refused(core) == ("server.max_startups", 4)
    assert core.log_in(held) is None
    admitted(core)


# ---- by source


@pytest.mark.parametrize(
    ("section", "other"), [("per_address", "192.0.2.2"), ("per_network", "192.0.3.1"), ("per_network", "2001:db8::1")]
)
@pytest.mark.parametrize("name", ["startups", "connections", "connections_per_minute"])
def test_one_source_too_many_is_refused_and_the_others_are_not(section: str, other: str, name: str) -> None:
    none = {"startups": 0, "connections": 0, "connections_per_minute": 0, "sessions": 0}
    core = limits(**{"per_address": none, "per_network": none, section: {**none, name: 2}})
    admitted(core)
    admitted(core, "192.0.2.1" if section == "per_address" else "192.0.2.9")
    assert refused(core) == (f"server.{section}.{name}", 2)
    admitted(core, other)


def test_networks_are_as_wide_as_they_are_set() -> None:
    core = limits(per_network={"connections": 1, "ipv4_prefix": 16, "ipv6_prefix": 32}, exempt=[])
    admitted(core, "192.0.2.1")
    assert refused(core, "192.0.200.1")[0] == "server.per_network.connections"
    admitted(core, "192.1.2.1")
    admitted(core, "2001:db8:1::1")
    assert refused(core, "2001:db8:2::1")[0] == "server.per_network.connections"
    assert core.network_of("192.0.2.1") == core.network_of("192.0.200.1") != core.network_of("192.1.0.1")


def test_who_is_exempt_has_no_limits_but_the_sensors() -> None:
    core = limits(max_connections=40)
    for _ in range(40):
        admitted(core, "127.0.0.1")
    assert refused(core, "127.0.0.1") == ("server.max_connections", 40)
    assert core.sources == 0


def test_new_connections_come_back_with_time() -> None:
    core = limits(per_address={"connections_per_minute": 60})
    for _ in range(60):
        core.leave(admitted(core))
    assert refused(core, now=0.5) == ("server.per_address.connections_per_minute", 60)
    core.leave(admitted(core, now=1.0))
    assert refused(core, now=1.0)[0] == "server.per_address.connections_per_minute"
    for _ in range(60):
        core.leave(admitted(core, now=500.0))
    refused(core, now=500.0)


def test_sessions_are_limited_by_address_by_network_and_in_all() -> None:
    core = limits(max_sessions=4, per_address={"sessions": 2}, per_network={"sessions": 3})
    slots = [admitted(core, address) for address in ("192.0.2.1",) * 3 + ("192.0.2.2",) * 2 + ("198.51.100.1",) * 2]
    assert [core.log_in(it) for it in slots] == [
        None, None, Refusal("server.per_address.sessions", 2),
        None, Refusal("server.per_network.sessions", 3),
        None, Refusal("server.max_sessions", 4),
    ]  # fmt: skip
    core.leave(slots[0])
    assert core.log_in(slots[2]) is None


def test_the_longest_unseen_is_forgotten_first() -> None:
    forgotten = []
    config = ServerConfig.model_validate({"max_sources": 3, "per_network": {"connections_per_minute": 0}})
    core = Limits(config, lambda: forgotten.append(1))
    for number in range(4):
        core.leave(admitted(core, f"192.0.2.{number}"))
        if number == 2:
            core.leave(admitted(core, "192.0.2.0"))
    assert (core.sources, forgotten) == (3, [1])
    assert set(core._tables[0]._idle) == {"192.0.2.0", "192.0.2.2", "192.0.2.3"}


# ---- whatever comes in whatever order

TIGHT = ServerConfig.model_validate({
    "max_startups": "4:50:6", "max_connections": 8, "max_sessions": 4, "max_sources": 3,
    "per_address": {"startups": 2, "connections": 3, "connections_per_minute": 6, "sessions": 2},
    "per_network": {"startups": 3, "connections": 5, "connections_per_minute": 9, "sessions": 3},
})  # fmt: skip


class Comings(RuleBasedStateMachine):
    """Connections come, log in and go, in any order; a model counts along."""

    slots = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.core = Limits(TIGHT)
        self.now = 0.0
        self.model: dict[Slot, tuple[str, Step]] = {}
        self.entered: list[tuple[float, str]] = []

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=slots, address=st.sampled_from(ADDRESSES), draw=st.integers(0, 99))
    def comes(self, address: str, draw: int) -> Slot | None:
        outcome = self.core.admit(self.now, address, draw)
        if isinstance(outcome, Refusal):
            return None
        self.model[outcome] = (address, Step.STARTING)
        self.entered.append((self.now, address))
        return outcome

    @rule(slot=slots)
    def logs_in(self, slot: Slot | None) -> None:
        if slot is None:
            return
        before = self.model.get(slot)
        refusal = self.core.log_in(slot)
        if before is None or before[1] is not Step.STARTING:
            assert refusal is None
        elif refusal is None:
            self.model[slot] = (before[0], Step.SESSION)

    @rule(slot=consumes(slots), twice=st.booleans())
    def goes(self, slot: Slot | None, twice: bool) -> None:
        if slot is None:
            return
        for _ in range(1 + twice):
            self.core.leave(slot)
        assert self.core.log_in(slot) is None
        self.model.pop(slot, None)

    @invariant()
    def no_place_is_lost_and_none_counted_twice(self) -> None:
        steps = [step for _, step in self.model.values()]
        counted = (self.core.connections, self.core.startups, self.core.sessions)
        assert counted == (len(steps), steps.count(Step.STARTING), steps.count(Step.SESSION))
        assert self.core.startups <= 6
        assert self.core.connections <= 8
        assert self.core.sessions <= 4

    @invariant()
    def no_source_has_more_than_its_due(self) -> None:
        limited = [(address, step) for address, step in self.model.values() if address != "127.0.0.1"]
        for caps, of in ((TIGHT.per_address, str), (TIGHT.per_network, self.core.network_of)):
            sources: dict[object, list[Step]] = {}
            for address, step in limited:
                sources.setdefault(of(address), []).append(step)
            for steps in sources.values():
                assert len(steps) <= caps.connections
                assert steps.count(Step.STARTING) <= caps.startups
                assert steps.count(Step.SESSION) <= caps.sessions

    @invariant()
    def what_is_remembered_is_bounded(self) -> None:
        assert self.core.sources <= 2 * (TIGHT.max_connections + TIGHT.max_sources)


Comings.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestComings = Comings.TestCase


@settings(deadline=None)
@given(st.lists(st.floats(0, 20), min_size=1, max_size=60))
def test_no_minute_sees_more_new_connections_than_twice_the_limit(pauses: list[float]) -> None:
    """As many may come at once as in a minute, and while they come a minute's worth is added."""
    core = limits(per_address={"connections_per_minute": 6})
    now, taken = 0.0, []
    for pause in pauses:
        now += pause
        outcome = core.admit(now, "192.0.2.1", 99)
        if isinstance(outcome, Slot):
            taken.append(now)
            core.leave(outcome)
    for start in taken:
        assert sum(start <= it < start + 60 for it in taken) <= 12


def test_limits_can_be_changed_while_connections_are_held() -> None:
    limits = Limits(ServerConfig(max_connections=1))
    held = limits.admit(0.0, "192.0.2.1", 99)
    assert isinstance(held, Slot)
    assert isinstance(limits.admit(0.0, "192.0.2.2", 99), Refusal)
    limits.reconfigure(ServerConfig.model_validate({"max_connections": 10, "per_address": {"connections": 1}}))
    assert isinstance(limits.admit(0.0, "192.0.2.1", 99), Refusal)
    other = limits.admit(0.0, "192.0.2.2", 99)
    assert isinstance(other, Slot)
    limits.reconfigure(ServerConfig.model_validate({"exempt": ["192.0.2.0/24"]}))
    for slot in (held, other):
        limits.leave(slot)
    assert limits.connections == 0
