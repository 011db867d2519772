"""Evidence of a broker that died, as the next one finds it."""

from collections.abc import Collection
from pathlib import Path

import msgspec
import pytest

from hermes.broker.engines.base import Box
from hermes.broker.forensics import Facts, Forensics
from hermes.broker.recovery import recover
from hermes.broker.spools import Spools
from hermes.broker.trees import Copied
from hermes.config.models import ForensicsConfig
from hermes.container.messages import BrokerEvent
from hermes.errors import EngineError
from hermes.testing.engines import WrappedEngine


class Spared(WrappedEngine):
    """Has boxes of an earlier run, each with a file."""

    def __init__(self, *names: str, fails: bool = False) -> None:
        super().__init__()
        self.names = set(names)
        self.fails = fails

    async def start(self, *, spare: Collection[str] = ()) -> None:
        self.names &= set(spare)

    async def list_owned(self) -> list[str]:
        return sorted(self.names)

    async def recover(self, container_id: str, *, keep: Path | None) -> Copied | None:
        self.names.discard(container_id)
        if self.fails:
            raise EngineError("damaged")
        if keep is None:
            return None
        (keep / "changes").mkdir(parents=True)
        (keep / "changes" / "new").touch()
        return Copied(exceeded={"entries"})

    async def destroy(self, box: Box, *, keep: Path | None = None) -> Copied | None:
        raise AssertionError("nobody asked for that")


def facts(container_id: str, allocated: float = 2.0) -> Facts:
    session = f"of-{container_id}"
    return Facts(
        container_id=container_id, session_id=session, engine="fake", image="i", created=1, allocated=allocated, stopped=2
    )


class Next:
    """A broker that starts after one that died with these boxes in sessions' hands."""

    def __init__(self, directory: Path, *held: Facts, config: ForensicsConfig | None = None) -> None:
        self.stated: list[BrokerEvent] = []
        self.directory = directory
        before = Forensics(directory, ForensicsConfig(), emit=self.stated.append)
        for one in held:
            before.hold(one)
        self.spools = Spools(directory.with_name("watched"))
        self.forensics = Forensics(directory, config or ForensicsConfig(), emit=self.stated.append, over=self.spools.end)

    async def run(self, engine: Spared) -> None:
        left = await self.forensics.start()
        await engine.start(spare=[one.container_id for one in left])
        await recover(engine, self.forensics, left, emit=self.stated.append)
        await self.forensics.settled()
        await self.forensics.close()

    def of(self, kind: str) -> list[BrokerEvent]:
        return [event for event in self.stated if event.kind == kind]


@pytest.mark.asyncio
async def test_changes_are_kept_as_of_a_box_stopped_in_good_order(tmp_path: Path) -> None:
    after = Next(tmp_path / "stopped", facts("second", 5.0), facts("first", 4.0))
    engine = Spared("first", "second", "warm")
    await after.run(engine)
    assert engine.names == set()
    first, second = after.of("container.stopped")
    assert first.fields == {
        "container_id": "first", "session_id": "of-first", "kept": str(tmp_path / "stopped" / "first"), "recovered": True,
    }  # fmt: skip
    assert second.fields["container_id"] == "second"
    assert (tmp_path / "stopped" / "first" / "changes" / "new").exists()
    noted = msgspec.json.decode((tmp_path / "stopped" / "first" / "facts.json").read_bytes(), type=Facts)
    assert (noted.session_id, noted.allocated) == ("of-first", 4.0)
    assert [event.fields["limit"] for event in after.of("limit.reached")] == ["container_pool.forensics.box_entries"] * 2
    again = Next(tmp_path / "stopped")
    await again.run(Spared())
    assert again.stated == []


@pytest.mark.asyncio
async def test_half_a_copy_is_made_anew_while_the_box_is_there(tmp_path: Path) -> None:
    after = Next(tmp_path / "stopped", facts("one"))
    (tmp_path / "stopped" / "one" / "changes").mkdir(parents=True)
    (tmp_path / "stopped" / "one" / "changes" / "half").touch()
    await after.run(Spared("one"))
    assert [path.name for path in (tmp_path / "stopped" / "one" / "changes").iterdir()] == ["new"]
    assert len(after.of("container.stopped")) == 1


@pytest.mark.asyncio
async def test_what_was_copied_whole_before_the_box_went_stays(tmp_path: Path) -> None:
    after = Next(tmp_path / "stopped", facts("one"))
    (tmp_path / "stopped" / "one" / "changes").mkdir(parents=True)
    (tmp_path / "stopped" / "one" / "changes" / "whole").touch()
    await after.run(Spared())
    assert (tmp_path / "stopped" / "one" / "changes" / "whole").exists()
    (stopped,) = after.of("container.stopped")
    assert stopped.fields["kept"] == str(tmp_path / "stopped" / "one")


@pytest.mark.asyncio
@pytest.mark.parametrize("names", [("one",), ()])
async def test_what_cannot_be_kept_is_stated_and_not_tried_for_ever(tmp_path: Path, names: tuple[str, ...]) -> None:
    after = Next(tmp_path / "stopped", facts("one"))
    await after.run(Spared(*names, fails=True))
    (stopped,) = after.of("container.stopped")
    assert "kept" not in stopped.fields
    assert [event.fields["reason"] for event in after.of("engine.failed")] == ["damaged"] * len(names)
    assert list((tmp_path / "stopped" / ".held").iterdir()) == []


@pytest.mark.asyncio
async def test_where_nothing_is_to_be_kept_the_box_is_removed(tmp_path: Path) -> None:
    after = Next(tmp_path / "stopped", facts("one"), config=ForensicsConfig(count=0))
    engine = Spared("one")
    await after.run(engine)
    assert engine.names == set()
    assert "kept" not in after.of("container.stopped")[0].fields


@pytest.mark.asyncio
async def test_notes_that_are_none_are_removed(tmp_path: Path) -> None:
    after = Next(tmp_path / "stopped", facts("one"))
    held = tmp_path / "stopped" / ".held"
    (held / "torn").write_bytes(b'{"container_id": "to')
    (held / ".one").write_bytes(b"")
    (held / "other").write_bytes(msgspec.json.encode(facts("../../etc")))
    await after.run(Spared())
    assert len(after.of("container.stopped")) == 1
    assert list(held.iterdir()) == []
