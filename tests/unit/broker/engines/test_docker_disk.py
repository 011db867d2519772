import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from hermes.broker import trees
from hermes.broker.engines.docker_disk import DiskWatch, upper_directory
from hermes.broker.trees import Measured
from hermes.config.models import LimitsConfig
from hermes.tasks import TaskOwner

LIMITS = LimitsConfig(disk=16 << 20, inodes=1024)


def details(upper: Path | str, driver: str = "overlay2") -> dict[str, object]:
    return {"GraphDriver": {"Name": driver, "Data": {"UpperDir": str(upper)}}}


def test_an_upper_directory_is_one_that_is_here(tmp_path: Path) -> None:
    assert upper_directory(details(tmp_path)) == tmp_path
    for other in (details(tmp_path / "none"), details(tmp_path, "vfs"), details(""), {}, {"GraphDriver": {"Data": None}}):
        assert upper_directory(other) is None


class Filled:
    """A file system that others fill as told, and a watch of one container on it."""

    def __init__(self, upper: Path) -> None:
        self.seen = SimpleNamespace(f_blocks=1 << 20, f_bfree=1 << 19, f_frsize=4096, f_files=1 << 20, f_ffree=1 << 19)
        self.frozen: list[tuple[str, bool]] = []
        self.told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.watch = DiskWatch(LIMITS, freeze=self.freeze, exceeded=self.exceeded, look=0.01)
        self.watch.uppers["one"] = upper

    async def freeze(self, container_id: str, frozen: bool) -> None:
        self.frozen.append((container_id, frozen))

    async def exceeded(self, container_id: str, name: str) -> None:
        del self.watch.uppers[container_id]
        await self.told.put((container_id, name))

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        async with TaskOwner("test") as tasks:
            task = tasks.spawn(self.watch.run(), name="watch")
            yield
            task.cancel()

    async def look(self) -> None:
        """Wait until the watch has looked a few times."""
        await asyncio.sleep(0.1)


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filled:
    (tmp_path / "upper").mkdir()
    filled = Filled(tmp_path / "upper")
    monkeypatch.setattr(os, "statvfs", lambda _: filled.seen)
    return filled


@pytest.mark.asyncio
async def test_a_container_that_holds_too_much_is_told_of(filled: Filled, tmp_path: Path) -> None:
    async with filled.watching():
        await filled.look()
        (tmp_path / "upper" / "big").write_bytes(b"x" * (17 << 20))
        await filled.look()
        assert filled.told.empty(), "the file system has not filled, so nothing is measured"
        filled.seen.f_bfree -= (17 << 20) // 4096
        assert await asyncio.wait_for(filled.told.get(), 10) == ("one", "disk")
    assert filled.frozen == []


@pytest.mark.asyncio
async def test_too_many_files_are_told_of(filled: Filled, tmp_path: Path) -> None:
    for n in range(1030):
        (tmp_path / "upper" / str(n)).touch()
    async with filled.watching():
        await filled.look()
        filled.seen.f_ffree -= 1030
        assert await asyncio.wait_for(filled.told.get(), 10) == ("one", "inodes")


@pytest.mark.asyncio
async def test_what_others_write_is_no_fault_of_a_container(filled: Filled, tmp_path: Path) -> None:
    (tmp_path / "upper" / "small").write_bytes(b"x" * 1000)
    async with filled.watching():
        await filled.look()
        filled.seen.f_bfree -= 1 << 18
        await filled.look()
        assert filled.told.empty()
        assert filled.watch.uppers


@pytest.mark.asyncio
async def test_one_that_moves_its_directories_is_held_still(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_: Path, max_entries: int) -> Measured:
        return Measured(17 << 20, 5, True) if filled.frozen else Measured(0, 5, False)

    monkeypatch.setattr(trees, "measure", measure)
    async with filled.watching():
        await filled.look()
        filled.seen.f_bfree -= 1 << 14
        assert await asyncio.wait_for(filled.told.get(), 10) == ("one", "disk")
    assert filled.frozen == [("one", True), ("one", False)]


@pytest.mark.asyncio
async def test_a_container_that_is_gone_hurts_nobody(filled: Filled, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "big").write_bytes(b"x" * (17 << 20))
    filled.watch.uppers = {"gone": tmp_path / "gone", "one": tmp_path / "other"}
    async with filled.watching():
        await filled.look()
        filled.seen.f_bfree -= 1 << 14
        assert await asyncio.wait_for(filled.told.get(), 10) == ("one", "disk")


@pytest.mark.asyncio
async def test_what_was_written_before_the_first_look_is_found(filled: Filled, tmp_path: Path) -> None:
    (tmp_path / "upper" / "big").write_bytes(b"x" * (17 << 20))
    async with filled.watching():
        assert await asyncio.wait_for(filled.told.get(), 10) == ("one", "disk")


@pytest.mark.asyncio
async def test_what_is_written_while_another_frees_as_much_is_found(filled: Filled, tmp_path: Path) -> None:
    filled.watch = DiskWatch(LIMITS, freeze=filled.freeze, exceeded=filled.exceeded, look=0.01, every=0.2)
    filled.watch.uppers["one"] = tmp_path / "upper"
    async with filled.watching():
        await filled.look()
        (tmp_path / "upper" / "big").write_bytes(b"x" * (17 << 20))
        assert await asyncio.wait_for(filled.told.get(), 10) == ("one", "disk")
