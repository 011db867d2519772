"""What is stated of limits, and how often."""

import asyncio
from pathlib import Path

import pytest

from hermes.broker import limit_watch
from hermes.broker.engines.base import Box
from hermes.broker.forensics import Facts, Forensics
from hermes.broker.limit_watch import Watch
from hermes.config import ContainerPoolConfig
from hermes.config.models import ForensicsConfig
from hermes.container.messages import BrokerEvent
from hermes.testing import FakeEngine

FACTS = Facts(container_id="one", session_id="s", engine="fake", image="i", created=1, allocated=2, stopped=3)


class Looking(FakeEngine):
    """Finds what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.finds: dict[str, int] = {}
        self.looks = 0
        self.looked = asyncio.Event()

    def look(self, box: Box) -> None:
        self.looks += 1
        self.looked.set()
        box.reached.update(self.finds)


class Stated:
    def __init__(self) -> None:
        self.events: list[BrokerEvent] = []
        self.news = asyncio.Event()

    def __call__(self, event: BrokerEvent) -> None:
        self.events.append(event)
        self.news.set()

    def limits(self) -> list[tuple[object, object]]:
        return [(event.fields["limit"], event.fields["suppressed"]) for event in self.events]


@pytest.mark.asyncio
async def test_a_limit_is_stated_while_the_box_lives_and_again_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_watch, "LOOK", 0.01)
    engine, stated = Looking(), Stated()
    engine.finds = {"memory": 2}
    watching = Watch(engine, ContainerPoolConfig(), stated)
    box = Box("one")
    watching.begin(box, FACTS, expired=lambda: None)
    await asyncio.wait_for(stated.news.wait(), 10)
    assert stated.limits() == [("container_pool.limits.memory", 1)]
    assert stated.events[0].fields["value"] == ContainerPoolConfig().limits.memory
    assert stated.events[0].fields["container_id"] == "one"
    looks = engine.looks
    engine.finds = {"memory": 9, "disk": 1}
    stated.news.clear()
    await asyncio.wait_for(stated.news.wait(), 10)
    assert stated.limits()[1:] == [("container_pool.limits.disk", 0)], "what was stated a moment ago is only counted"
    assert engine.looks > looks
    watching.end(box)
    assert stated.limits()[2:] == [("container_pool.limits.memory", 6)]
    watching.end(box)
    assert len(stated.events) == 3
    watching.close()


@pytest.mark.asyncio
async def test_nothing_is_looked_at_when_nobody_holds_a_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_watch, "LOOK", 0.01)
    engine, stated = Looking(), Stated()
    watching = Watch(engine, ContainerPoolConfig(), stated)
    for _ in range(2):
        engine.looked.clear()
        watching.begin(Box("one"), FACTS, expired=lambda: None)
        await asyncio.wait_for(engine.looked.wait(), 10)
        watching.end(Box("one"))
        watching._look()
        assert watching._timer is None
    assert stated.events == []


@pytest.mark.asyncio
@pytest.mark.parametrize("lifetime", [0, 0.01])
async def test_a_lifetime_ends_once_if_there_is_one(lifetime: float) -> None:
    config = ContainerPoolConfig.model_validate({"limits": {"lifetime": lifetime}})
    stated, over = Stated(), asyncio.Event()
    watching = Watch(Looking(), config, stated)
    watching.begin(Box("one"), FACTS, expired=over.set)
    watched = watching._boxes["one"]
    assert (watched.lifetime is None) == (lifetime == 0)
    if lifetime:
        await asyncio.wait_for(over.wait(), 10)
        assert stated.limits() == [("container_pool.limits.lifetime", 0)]
    watching.end(Box("one"))
    watching.close()


@pytest.mark.asyncio
async def test_a_box_given_back_does_not_expire() -> None:
    config = ContainerPoolConfig.model_validate({"limits": {"lifetime": 0.01}})
    stated, over = Stated(), asyncio.Event()
    watching = Watch(Looking(), config, stated)
    box = Box("one")
    watching.begin(box, FACTS, expired=over.set)
    watching.stop(box)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(over.wait(), 0.1)
    watching.end(box)
    watching.close()


@pytest.mark.asyncio
async def test_who_holds_it_is_noted(tmp_path: Path) -> None:
    forensics = Forensics(tmp_path, ForensicsConfig(), emit=Stated())
    watching = Watch(Looking(), ContainerPoolConfig(), Stated(), forensics)
    watching.begin(Box("one"), FACTS, expired=lambda: None)
    assert [path.name for path in (tmp_path / ".held").iterdir()] == ["one"]
    watching.end(Box("one"))
    assert list((tmp_path / ".held").iterdir()) == []
    watching.close()
