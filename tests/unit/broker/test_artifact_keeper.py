"""The limits of all artifacts: the least recently seen goes first, never what an active session may name, and each is stated."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from hermes import artifacts
from hermes.broker.artifact_keeper import ArtifactKeeper, Kept
from hermes.broker.artifacts import prepare
from hermes.config.artifacts import ArtifactsConfig
from hermes.container.messages import BrokerEvent

NOW = 1e9
DAY = 86400
MIB = 1 << 20


class Shelves:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts: list[BrokerEvent] = []
        self.active: float | None = None
        (directory / ".incoming").mkdir(parents=True)

    def keep(self, content: bytes, age: float, size: int = MIB) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        place = artifacts.path(self.directory, sha256)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.ljust(size, b"."))
        os.utime(place, (NOW - age, NOW - age))
        return sha256

    def keeper(self, **settings: Any) -> ArtifactKeeper:
        config = ArtifactsConfig.model_validate({"max_age": 0, **settings})
        return ArtifactKeeper(
            self.directory, config, emit=self.facts.append, active_since=lambda: self.active, clock=lambda: NOW
        )  # fmt: skip

    @property
    def left(self) -> set[str]:
        return {it.name for it in self.directory.rglob("*") if it.is_file()}

    @property
    def removed(self) -> list[tuple[Any, Any]]:
        assert {(it.kind, it.fields["what"]) for it in self.facts} <= {("evidence.removed", "artifact")}
        return [(it.fields["path"], it.fields["reason"]) for it in self.facts]


pytestmark = [pytest.mark.asyncio, pytest.mark.skipif(os.geteuid() != 0, reason="artifacts are root's")]


@pytest.fixture
def shelves(tmp_path: Path) -> Shelves:
    return Shelves(tmp_path / "artifacts")


async def test_the_least_recently_seen_goes_first(shelves: Shelves) -> None:
    names = [shelves.keep(b"%d" % age, age * DAY) for age in range(1, 8)]
    keeper = shelves.keeper(max_bytes=4 * MIB)
    await keeper.hold()
    assert shelves.removed == [(name, "artifacts.max_bytes") for name in reversed(names[3:])]
    assert shelves.left == set(names[:3])
    assert keeper.total == 3 * MIB
    await keeper.hold()
    assert len(shelves.facts) == 4


async def test_what_was_not_seen_for_too_long_goes(shelves: Shelves) -> None:
    old, young = shelves.keep(b"old", 10 * DAY), shelves.keep(b"young", 8 * DAY)
    await shelves.keeper(max_age=9 * DAY).hold()
    assert shelves.removed == [(old, "artifacts.max_age")]
    assert shelves.left == {young}


async def test_what_is_seen_again_stays(shelves: Shelves) -> None:
    name = shelves.keep(b"old", 8 * DAY)
    keeper = shelves.keeper(max_age=9 * DAY)
    await keeper.hold()
    os.utime(artifacts.path(shelves.directory, name), (NOW, NOW))
    keeper._clock = lambda: NOW + 5 * DAY
    await keeper.hold()
    assert shelves.left == {name}


async def test_nothing_goes_that_an_active_session_may_name(shelves: Shelves) -> None:
    seen, unseen = shelves.keep(b"seen", 50 * DAY), shelves.keep(b"unseen", 100 * DAY)
    shelves.active = NOW - 60 * DAY
    await shelves.keeper(max_bytes=MIB, max_age=DAY).hold()
    assert shelves.left == {seen}
    assert shelves.removed == [(unseen, "artifacts.max_age")]


async def test_what_was_seen_between_choice_and_removal_stays(shelves: Shelves) -> None:
    name = shelves.keep(b"x", DAY)
    assert shelves.keeper()._take(Kept(NOW - 2 * DAY, MIB, name)) is None
    assert shelves.left == {name}


async def test_what_was_put_aside_and_not_stated_is_put_back(shelves: Shelves) -> None:
    name = shelves.keep(b"x", DAY)
    assert shelves.keeper()._take(Kept(NOW - DAY, MIB, name)) is not None
    assert not artifacts.path(shelves.directory, name).exists()
    prepare(str(shelves.directory), os.getegid())
    assert shelves.left == {name}
    assert artifacts.path(shelves.directory, name).exists()


async def test_what_a_crash_left_empty_goes(shelves: Shelves) -> None:
    torn, empty = shelves.keep(b"torn", 100, size=0), shelves.keep(b"", 100, size=0)
    artifacts.path(shelves.directory, torn).write_bytes(b"")
    await shelves.keeper(max_age=DAY).hold()
    assert shelves.left == {empty}


async def test_removals_wait_until_they_can_be_stated(shelves: Shelves) -> None:
    for age in range(5):
        shelves.keep(b"%d" % age, (10 + age) * DAY)
    keeper = shelves.keeper(max_age=DAY)
    asked: list[int] = []

    def room() -> bool:
        asked.append(len(shelves.facts))
        return len(asked) % 2 == 0

    keeper._room = room
    await keeper.hold()
    assert len(asked) == 2 * len(shelves.facts) == 10
