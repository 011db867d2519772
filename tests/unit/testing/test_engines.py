"""What the conformance suite (tests/engine) does not say of the fakes: how they misbehave, and that they leave nothing."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hermes.broker.engines.base import Engine
from hermes.errors import EngineError, SpawnError
from hermes.testing import BrokenEngine, FakeEngine, NeverEngine, SlowEngine
from hermes.testing.boxes import BoxClient, eventually

PASSWD = Path("/etc/passwd")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in {b"Z", b"X"}
    except OSError:
        return False


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    yield engine
    await engine.close()


async def daemon(client: BoxClient) -> int:
    """A process that has left its session and its parent."""
    pid = await client.output("(setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!)")
    assert alive(int(pid))
    return int(pid)


@pytest.mark.asyncio
async def test_destroy_ends_daemons_too(engine: FakeEngine) -> None:
    box = await engine.create("one")
    async with BoxClient(await engine.open(box)) as client:
        pid = await daemon(client)
        await engine.destroy(box)
    assert not alive(pid)
    assert not alive(box.pid)


@pytest.mark.asyncio
async def test_a_killed_init_takes_its_box_along_and_is_told_once(engine: FakeEngine) -> None:
    box, other = await engine.create("one"), await engine.create("other")
    told: list[str] = []
    box.on_exit.append(lambda: told.append("one"))
    other.on_exit.append(lambda: told.append("other"))
    async with BoxClient(await engine.open(box)) as client, BoxClient(await engine.open(other)) as unharmed:
        pid = await daemon(client)
        os.kill(box.pid, signal.SIGKILL)
        await asyncio.wait_for(client.container.lost.wait(), 10)

        async def gone() -> bool:
            return not alive(pid)

        await eventually(gone)
        assert told == ["one"]
        assert await engine.list_owned() == ["one", "other"]
        await engine.destroy(box)
        assert await unharmed.output("echo fine") == "fine"
    assert await engine.list_owned() == ["other"]


@pytest.mark.asyncio
async def test_closing_the_engine_ends_everything() -> None:
    engine = FakeEngine()
    await engine.start()
    box = await engine.create("one")
    async with BoxClient(await engine.open(box)) as client:
        pid = await daemon(client)
        await engine.close()
    assert not alive(pid)
    with pytest.raises(EngineError, match="not started"):
        await engine.create("two")


@pytest.mark.asyncio
async def test_a_killed_nursery_takes_everything_along() -> None:
    engine = FakeEngine()
    await engine.start()
    box = await engine.create("one")
    async with BoxClient(await engine.open(box)) as client:
        assert engine._nursery is not None
        engine._nursery.kill()
        await asyncio.wait_for(client.container.lost.wait(), 10)
    with pytest.raises(EngineError):
        await engine.create("two")
    await engine.close()
    assert not alive(box.pid)


@pytest.mark.asyncio
async def test_no_user_is_made_on_this_machine(engine: FakeEngine) -> None:
    before = PASSWD.read_bytes()
    box = await engine.create("one")
    async with BoxClient(await engine.open(box)) as client:
        with pytest.raises(SpawnError, match="no such user"):
            await client.start("id", user="nobody-i-know")
    assert PASSWD.read_bytes() == before


@pytest.mark.asyncio
async def test_an_id_is_used_once_and_unknown_boxes_are_refused(engine: FakeEngine) -> None:
    box = await engine.create("one")
    with pytest.raises(EngineError, match="exists"):
        await engine.create("one")
    await engine.destroy(box)
    for ask in (engine.open, engine.freeze, engine.thaw):
        with pytest.raises(EngineError):
            await ask(box)


@pytest.mark.asyncio
async def test_what_is_kept_has_the_shape_of_what_engines_keep(engine: FakeEngine, tmp_path: Path) -> None:
    box = await engine.create("one")
    await engine.destroy(box, keep=tmp_path / "kept")
    info = (tmp_path / "kept").stat()
    assert (info.st_uid, info.st_mode & 0o7777) == (os.geteuid(), 0o700)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["changes"]


# ---- engines that misbehave


@pytest.mark.asyncio
@pytest.mark.parametrize("make", [SlowEngine, lambda: BrokenEngine(failures=0)])
async def test_the_others_do_what_the_engine_they_wrap_does(make: type[SlowEngine]) -> None:
    engine: Engine = make()
    await engine.start()
    box = await engine.create("one")
    async with BoxClient(await engine.open(box)) as client:
        assert await client.output("echo here") == "here"
        await engine.freeze(box)
        await engine.thaw(box)
    assert await engine.list_owned() == ["one"]
    await engine.destroy(box)
    await engine.destroy(box)
    assert await engine.list_owned() == []
    await engine.close()


@pytest.mark.asyncio
async def test_never_engine_hangs_until_it_may_go_on(engine: FakeEngine) -> None:
    never = NeverEngine(engine)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(never.create("one"), 0.01)
    assert (never.hanging, never.created) == (0, 1)
    assert await never.list_owned() == []
    never.go.set()
    assert (await never.create("one")).id == "one"


@pytest.mark.asyncio
async def test_broken_engine_fails_as_often_as_it_is_told(engine: FakeEngine) -> None:
    broken = BrokenEngine(engine, failures=2, reason="no space left")
    for _ in range(2):
        with pytest.raises(EngineError, match="no space left"):
            await broken.create("one")
    assert (await broken.create("one")).id == "one"
    always = BrokenEngine(engine)
    for _ in range(5):
        with pytest.raises(EngineError):
            await always.create("two")
    assert always.created == 5
