import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from hermes.broker.forensics import BACKLOG, Facts, Forensics, Kept, budget, excess
from hermes.config.models import ForensicsConfig
from hermes.container.messages import BrokerEvent


def facts(container_id: str, stopped: float = 1000.0) -> Facts:
    return Facts(
        container_id=container_id,
        session_id=f"session-{container_id}",
        engine="local",
        image="debian-12",
        created=stopped - 60,
        allocated=stopped - 30,
        stopped=stopped,
    )


class Keeper:
    """A `Forensics` with a clock of its own, and the facts it stated."""

    def __init__(self, directory: Path, config: ForensicsConfig) -> None:
        self.now = 1000.0
        self.events: asyncio.Queue[BrokerEvent] = asyncio.Queue()
        self.forensics = Forensics(directory, config, emit=self.events.put_nowait, clock=lambda: self.now)

    async def keep(self, container_id: str, *, size: int = 0, stopped: float = 1000.0) -> Path | None:
        """As the pool does it: an engine leaves `changes/` at the place."""
        place = self.forensics.place(container_id)
        if place is not None:
            (place / "changes").mkdir(mode=0o700, parents=True)
            (place / "changes" / "file").write_bytes(b"x" * size)
        return await self.forensics.add(facts(container_id, stopped))

    async def discarded(self) -> tuple[object, object]:
        event = await asyncio.wait_for(self.events.get(), 10)
        assert event.kind == "container.discarded"
        return event.fields["container_id"], event.fields["reason"]

    async def settle(self) -> None:
        await asyncio.wait_for(self.forensics.settled(), 10)


@pytest_asyncio.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[Keeper]:
    keeper = Keeper(tmp_path / "stopped", ForensicsConfig(count=3, max_age=100, max_bytes=1_000_000))
    await keeper.forensics.start()
    yield keeper
    await keeper.forensics.close()


# ---- what is to go: pure

CONFIG = ForensicsConfig(count=3, max_age=100, max_bytes=1000)


def kept(*sizes: int, stopped: float = 0.0) -> list[Kept]:
    return [Kept(str(n), stopped + n, size) for n, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("held", "now", "gone"),
    [
        ([], 0, []),
        (kept(1, 1, 1), 10, []),
        (kept(1, 1, 1, 1), 10, [("0", "count")]),
        (kept(600, 1, 600), 10, [("0", "bytes")]),
        (kept(1, 1, 5000), 10, [("0", "bytes"), ("1", "bytes"), ("2", "bytes")]),
        (kept(1, 1, 1), 101, [("0", "age")]),
        (kept(1, 1, 1, 1, 1), 101, [("0", "age"), ("1", "count")]),
        (list(reversed(kept(1, 1, 1, 1))), 10, [("0", "count")]),
    ],
)
def test_the_oldest_go_first_and_the_limit_is_named(held: list[Kept], now: float, gone: list[tuple[str, str]]) -> None:
    assert [(one.container_id, reason) for one, reason in excess(held, CONFIG, now)] == gone


def test_the_budget_of_one_container_is_configured() -> None:
    config = ForensicsConfig(box_bytes=2_000_000, box_entries=300, box_depth=9, box_seconds=4)
    assert budget(config) == (2_000_000, 300, 9, 4)


# ---- kept, within limits


@pytest.mark.asyncio
async def test_a_stopped_container_is_kept_with_its_facts(keeper: Keeper) -> None:
    path = await keeper.keep("one", size=10)
    assert path is not None
    assert msgspec.json.decode((path / "facts.json").read_bytes(), type=Facts) == facts("one")
    assert stat.S_IMODE((path / "facts.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(keeper.forensics.directory.stat().st_mode) == 0o700
    await keeper.settle()
    assert keeper.forensics.count == 1
    assert keeper.events.empty()


@pytest.mark.asyncio
async def test_past_the_count_the_oldest_goes(keeper: Keeper) -> None:
    for n in range(5):
        await keeper.keep(f"c{n}", stopped=900.0 + n)
    assert [await keeper.discarded(), await keeper.discarded()] == [("c0", "count"), ("c1", "count")]
    await keeper.settle()
    assert sorted(path.name for path in keeper.forensics.directory.iterdir()) == ["c2", "c3", "c4"]


@pytest.mark.asyncio
async def test_past_the_bytes_the_oldest_goes(keeper: Keeper) -> None:
    await keeper.keep("big", size=700_000)
    await keeper.keep("new", size=700_000, stopped=1001)
    assert await keeper.discarded() == ("big", "bytes")


@pytest.mark.asyncio
async def test_past_the_age_it_goes(keeper: Keeper) -> None:
    await keeper.keep("old")
    await keeper.settle()
    keeper.now += 101
    await keeper.keep("new", stopped=keeper.now)
    assert await keeper.discarded() == ("old", "age")


@pytest.mark.asyncio
async def test_what_an_engine_did_not_leave_is_not_kept(keeper: Keeper) -> None:
    assert await keeper.forensics.add(facts("nothing")) is None
    assert keeper.forensics.count == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("limit", ["count", "max_age", "max_bytes"])
async def test_a_limit_of_zero_keeps_nothing(tmp_path: Path, limit: str) -> None:
    keeper = Keeper(tmp_path / "stopped", ForensicsConfig.model_validate({limit: 0}))
    assert keeper.forensics.place("one") is None


@pytest.mark.asyncio
async def test_when_removal_does_not_follow_nothing_more_is_kept(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "stopped", ForensicsConfig(count=1))  # not started: nothing is removed
    for n in range(1 + BACKLOG):
        assert await keeper.keep(f"c{n}") is not None
    assert keeper.forensics.place("more") is not None
    assert await keeper.keep("last") is not None
    assert keeper.forensics.place("more") is None


@pytest.mark.asyncio
async def test_it_survives_a_restart(keeper: Keeper) -> None:
    directory = keeper.forensics.directory
    for n in range(3):
        await keeper.keep(f"c{n}", stopped=990.0 + n)
    await keeper.settle()
    await keeper.forensics.close()
    (directory / "without-facts" / "changes").mkdir(parents=True)  # killed between the engine and the facts
    os.utime(directory / "without-facts", (995, 995))
    (directory / ".removing-c9" / "7" / "below").mkdir(parents=True)  # killed while removing
    (directory / "damaged").mkdir()
    (directory / "damaged" / "facts.json").write_bytes(b"{")
    os.utime(directory / "damaged", (996, 996))
    (directory / "stray").write_bytes(b"")
    again = Keeper(directory, ForensicsConfig(count=3, max_age=100))
    await again.forensics.start()
    assert [await again.discarded(), await again.discarded()] == [("c0", "count"), ("c1", "count")]
    await again.settle()
    assert again.forensics.count == 3
    assert sorted(path.name for path in directory.iterdir()) == ["c2", "damaged", "stray", "without-facts"]
    await again.forensics.close()


@pytest.mark.asyncio
async def test_what_cannot_be_removed_is_left_and_said_once(keeper: Keeper) -> None:
    await keeper.keep("c0", stopped=900)
    (keeper.forensics.directory / ".removing-c0").mkdir()
    for n in range(1, 4):
        await keeper.keep(f"c{n}", stopped=900.0 + n)
    await keeper.settle()
    assert keeper.forensics.count == 3
    assert keeper.events.empty()
    assert (keeper.forensics.directory / "c0").is_dir()
