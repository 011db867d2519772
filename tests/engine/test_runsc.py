"""What is gVisor's own on the `local` engine: who its processes are, what it keeps and leaves, and versions that will not do."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from hermes.broker import programs
from hermes.broker.cgroups import BoxCgroup, hierarchies
from hermes.broker.engines.local import LocalEngine
from hermes.broker.image import Image
from hermes.broker.janitor import sweep
from hermes.config import ContainerPoolConfig
from hermes.container import Terminal
from hermes.errors import EngineError
from hermes.testing.boxes import BoxClient, eventually
from tests.engine.conftest import broker_umask, new_id

pytestmark = [pytest.mark.root, pytest.mark.timeout(180, func_only=True)]


@pytest_asyncio.fixture
async def engine(
    tmp_path: Path, target_image: Image, pool_config: Callable[..., ContainerPoolConfig]
) -> AsyncIterator[LocalEngine]:
    config = pool_config(runtime="runsc", create_timeout=60)
    engine = LocalEngine(config, data_dir=tmp_path / "data", image=target_image, instance=f"runsc{os.getpid()}")
    with broker_umask():
        await engine.start()
        yield engine
        await engine.close()


def _status(pid: int, field: str) -> str:
    (value,) = re.findall(rf"^{field}:\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return str(value)


@pytest.mark.asyncio
async def test_no_process_of_a_box_is_root_outside(engine: LocalEngine) -> None:
    box = await engine.create(new_id())
    pids = engine._cells[box.id].cgroup.pids()
    assert box.pid in pids
    assert set(_status(box.pid, "Uid").split()) == {"65534"}
    gofers = [pid for pid in pids if b"runsc-gofer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert gofers
    assert all(min(map(int, _status(pid, "Uid").split())) >= 65536 for pid in gofers)
    assert _status(box.pid, "Seccomp") == "2"
    assert int(_status(box.pid, "CapEff"), 16) & ~(1 << 19) == 0, "nothing but to trace its own"
    await engine.destroy(box)


@pytest.mark.asyncio
async def test_what_is_written_is_kept_though_nobody_synced(engine: LocalEngine, tmp_path: Path) -> None:
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        writer = await client.start("echo tool > /tmp/tool; exec 3>/root/open; printf half >&3; echo ready; sleep 999")
        await writer.read_until(b"ready\n")
        await engine.destroy(box, keep=tmp_path / "kept")
        assert (await writer.wait()).signal == "KILL"
        writer.close()
    changes = tmp_path / "kept" / "changes"
    assert (changes / "tmp" / "tool").read_bytes() == b"tool\n"
    assert (changes / "root" / "open").read_bytes() == b"half"


@pytest.mark.asyncio
async def test_keys_and_sizes_reach_the_foreground(engine: LocalEngine) -> None:
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        shell = await client.start(terminal=Terminal(width=80, height=24))
        await shell.write(b"sh -c 'trap \"stty size\" WINCH; echo $((6*7)); while :; do sleep 0.1; done'\n")
        await shell.read_until(b"42\r\n")
        shell.process.resize(132, 50)
        await shell.read_until(b"50 132\r\n")
        await shell.write(b"\x03")
        await shell.write(b"exit 6\n")
        assert (await shell.wait()).status == 6
        shell.close()
    await engine.destroy(box)


@pytest.mark.asyncio
async def test_sweep_leaves_nothing(engine: LocalEngine) -> None:
    box = await engine.create(new_id())
    client = BoxClient(await engine.open(box))
    cat = await client.start("cat")
    pids = engine._cells[box.id].cgroup.pids()
    name = engine.runtime_dir.name
    await asyncio.to_thread(sweep, name, engine.runtime_dir)
    assert not BoxCgroup(f"/hermes-{name}", hierarchies()).exists()
    assert not (engine.runtime_dir / "runtime").exists()
    assert str(engine.runtime_dir) not in Path("/proc/self/mountinfo").read_text()
    assert (await cat.wait()).signal == "KILL"
    cat.close()
    client.close()

    async def gone() -> bool:
        return not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)

    await eventually(gone)


OLD = """\
#!/bin/sh
case " $* " in *" exec "*) echo "ls: cannot access '/': Invalid argument" >&2; exit 2;; esac
exec {real} "$@"
"""


@pytest.mark.asyncio
async def test_a_version_in_which_programs_do_not_run(
    tmp_path: Path, target_image: Image, pool_config: Callable[..., ContainerPoolConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "runsc"
    program.parent.mkdir()
    program.write_text(OLD.format(real=programs.which("runsc")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    engine = LocalEngine(pool_config(runtime="runsc"), data_dir=tmp_path / "data", image=target_image, instance="runsc-old")
    with pytest.raises(EngineError, match=r"programs do not run in a box of .*/runsc: ls: cannot access '/'"):
        await engine.start()
    assert await engine.list_owned() == []
    await engine.close()
