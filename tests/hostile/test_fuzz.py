"""The fuzzer, for a bounded time: kept cases, then new ones from a seed that is printed. `HERMES_TEST_SEED` repeats a run."""

import contextlib
import os
import random
from collections.abc import AsyncIterator

import pytest

from tests.hostile.fuzz import engine
from tests.hostile.fuzz.__main__ import CORPUS
from tests.hostile.fuzz.case import Case, Step, load
from tests.hostile.fuzz.grammar import generate, relative
from tests.hostile.fuzz.targets import Broken, FrontTarget, SensorTarget
from tests.sensors import Start

SECONDS = float(os.environ.get("HERMES_TEST_FUZZ_SECONDS", "40"))
SEED = int(os.environ.get("HERMES_TEST_SEED", random.randrange(2**32)))


def test_a_seed_gives_the_same_case_each_time_and_a_case_is_its_text() -> None:
    for seed in range(300):
        case = generate(seed)
        assert case == generate(seed)
        assert Case.parse(case.text()) == case
        near = relative(case, seed)
        assert near == relative(case, seed)
        assert Case.parse(near.text()) == near


def test_cases_reach_every_part_of_the_surface() -> None:
    """Every kind of message, method, request and channel there is, at every depth, is sent within a few thousand cases."""
    steps = [step for case in map(generate, range(3000)) for step in case.steps]
    types = {step.data[0] for step in steps if step.kind == "packet" and step.data}
    assert types >= {*range(1, 8), 20, 21, *range(30, 36), *range(50, 54), 60, 61, 80, 81, 82, *range(90, 101)}
    whole = b"".join(step.data for step in steps)
    names = (b"publickey", b"hostbased", b"gssapi-keyex", b"direct-tcpip", b"tun@openssh.com", b"x11-req", b"posix-rename@")
    assert [name for name in names if name not in whole] == []
    assert {step.kind for step in steps} == {
        "wire", "packet", "frame", "rekey", "pause", "deaf", "eof",
    }  # fmt: skip


def test_kept_cases_are_cases() -> None:
    kept = load(CORPUS)
    assert kept
    assert all(case.steps and case.note for case in kept.values())


@pytest.mark.asyncio
@pytest.mark.timeout(900)
async def test_a_front_stays_whole() -> None:
    print(f"seed {SEED}")
    async with FrontTarget.running() as target:
        count = await engine.run(target, engine.cases(load(CORPUS), SEED), seconds=SECONDS, at_least=30)
    assert count >= 30


@pytest.mark.root
@pytest.mark.asyncio
@pytest.mark.timeout(900)
async def test_a_sensor_stays_whole_boxes_and_all(start: Start) -> None:
    print(f"seed {SEED}")
    sensor = start(server__max_auth_tries="20")
    async with SensorTarget.on(sensor) as target:
        count = await engine.run(target, engine.cases(load(CORPUS), SEED + 10**6), seconds=SECONDS, at_least=30)
    assert count >= 30
    sessions = sensor.sessions(ended=1)
    assert all(session["ended"] is not None for session in sensor.sessions(ended=len(sessions)))
    assert sensor.stop() == 0
    assert not SensorTarget.MISTAKES.findall(sensor.said())


# ---- the fuzzer itself: what it is to find, it finds


class Fragile:
    """A target that breaks when a certain payload was among the packets."""

    port = 0

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def check(self) -> None:
        if b"bad" in self.seen and b"worse" in self.seen:
            raise Broken("as told")


@pytest.mark.asyncio
async def test_a_breaking_case_is_reported_and_cut_down_to_what_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    fragile = Fragile()

    async def play(case: Case, port: int) -> None:
        fragile.seen += [step.data for step in case.steps]

    @contextlib.asynccontextmanager
    async def fresh() -> AsyncIterator[Fragile]:
        fragile.seen.clear()
        yield fragile

    monkeypatch.setattr(engine, "play", play)
    steps = [Step("packet", data) for data in (b"a", b"bad", b"b", b"c", b"worse", b"d", b"e")]
    with pytest.raises(engine.Failure, match="as told") as caught:
        await engine.run(fragile, [Case("keyed", tuple(steps), note="seed 7")], seconds=10)
    assert "# seed 7" in str(caught.value)
    shortest = await engine.minimised(caught.value.case, fresh)
    assert [step.data for step in shortest.steps] == [b"bad", b"worse"]


@pytest.mark.asyncio
async def test_a_front_that_logs_a_mistake_or_leaks_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FrontTarget.running() as target:
        await target.check()
        honest = target.state

        async def leaky() -> dict[str, object]:
            return {**await honest(), "visitors": 5}

        monkeypatch.setattr("tests.hostile.fuzz.targets.PATIENCE", 0.1)
        monkeypatch.setattr(target, "state", leaky)
        with pytest.raises(Broken, match=r"left behind: \{'visitors': "):
            await target.check()
        monkeypatch.undo()
