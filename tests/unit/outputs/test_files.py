"""Lines in a file that others rotate, cut and fill up."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hermes.outputs.files import FileSink
from hermes.outputs.sink import Record
from tests.unit.outputs.world import record
from tests.unit.store.facts import eventually


def render(records: Sequence[Record]) -> bytes:
    return b"".join(b"%d %s\n" % (it.id, b"x" * it.body.get("size", 0)) for it in records)


def numbers(path: Path) -> list[int]:
    """The numbers of a file's lines; every line is whole."""
    text = path.read_text()
    assert text.endswith("\n")
    return [int(it.split()[0]) for it in text.splitlines()]


async def send(sink: FileSink, *which: int) -> None:
    await sink.send([record(it) for it in which])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.log"


@pytest.mark.asyncio
async def test_lines_are_appended_and_only_owner_and_group_read_them(path: Path) -> None:
    path.write_text("0 before\n")
    path.chmod(0o600)
    sink = FileSink(str(path), render)
    await send(sink, 1, 2)
    await send(sink, 3)
    await sink.close()
    assert numbers(path) == [0, 1, 2, 3]
    fresh = FileSink(str(path.with_name("fresh")), render)
    await send(fresh, 1)
    await fresh.close()
    assert path.with_name("fresh").stat().st_mode & 0o777 == 0o640


@pytest.mark.asyncio
async def test_a_renamed_file_is_left_alone(path: Path) -> None:
    sink = FileSink(str(path), render)
    await send(sink, 1)
    path.rename(path.with_suffix(".1"))
    await send(sink, 2)
    path.unlink()
    await send(sink, 3)
    assert numbers(path.with_suffix(".1")) == [1]
    assert numbers(path) == [3]


@pytest.mark.asyncio
async def test_a_cut_file_is_gone_on_with_from_its_new_end(path: Path) -> None:
    sink = FileSink(str(path), render)
    await send(sink, *range(1, 100))
    os.truncate(path, 0)
    await send(sink, 100)
    assert path.read_text() == "100 \n"


@pytest.mark.parametrize("how", ["create 0640", "copytruncate"])
@pytest.mark.asyncio
async def test_logrotate_loses_nothing(path: Path, how: str) -> None:
    if shutil.which("logrotate") is None:
        pytest.fail("logrotate is missing: run scripts/setup --dev")
    config = path.with_name("rotate.conf")
    config.write_text(f"{path} {{\n su root root\n rotate 5\n size 1\n {how}\n}}\n")
    config.chmod(0o644)
    path.parent.chmod(0o755)
    sink = FileSink(str(path), render)
    for number in range(1, 4):
        await send(sink, number)
        subprocess.run(
            ["logrotate", "-f", "-s", path.with_name("state"), config], check=True, timeout=60, capture_output=True
        )  # fmt: skip
    await send(sink, 4)
    rotated = [it for it in sorted(path.parent.glob("out.log*"), reverse=True) if it.stat().st_size]
    found = [it for each in rotated for it in numbers(each)]
    assert found == [1, 2, 3, 4]


@pytest.mark.asyncio
async def test_a_line_that_a_killed_process_did_not_finish_is_taken_away(path: Path) -> None:
    path.write_text("1 whole\n2 cu")
    sink = FileSink(str(path), render)
    await send(sink, 2)
    assert path.read_text() == "1 whole\n2 \n"
    path.write_text("cut from the first byte")
    await send(FileSink(str(path), render), 1)
    assert path.read_text() == "1 \n"


@pytest.mark.asyncio
async def test_where_another_process_writes_nothing_is_taken_away(path: Path) -> None:
    path.write_text("1 being writt")
    await send(FileSink(str(path), render, alone=False), 2)
    assert path.read_text().startswith("1 being writt")


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = Path(tempfile.mkdtemp(prefix="hermes-small-", dir="/var/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "hermes-test", place], check=True, timeout=60)
    yield place
    subprocess.run(["umount", place], check=True, timeout=60)
    place.rmdir()


@pytest.mark.root
@pytest.mark.asyncio
async def test_on_a_full_disk_the_same_lines_go_on_where_they_stopped(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 40 * 1024)
    sink = FileSink(str(small_disk / "out.log"), render)
    batch = [record(it, size=4000) for it in range(1, 11)]
    with pytest.raises(OSError, match="No space"):
        await sink.send(batch)
    ballast.unlink()
    await sink.send(batch)
    assert numbers(small_disk / "out.log") == list(range(1, 11))
    await sink.close()
    await eventually(lambda: sink._fd < 0)


@pytest.mark.asyncio
async def test_a_directory_that_is_gone_is_an_error_until_it_is_back(path: Path) -> None:
    sink = FileSink(str(path.parent / "d" / "out.log"), render)
    batch = [record(1)]
    with pytest.raises(FileNotFoundError):
        await sink.send(batch)
    (path.parent / "d").mkdir()
    await sink.send(batch)
    assert numbers(path.parent / "d" / "out.log") == [1]


@pytest.mark.asyncio
async def test_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    sink = FileSink("stdout", render)
    await send(sink, 1, 2)
    await sink.close()
    assert capfd.readouterr().out == "1 \n2 \n"


@pytest.mark.asyncio
async def test_a_pipe_that_nobody_reads_holds_up_only_its_own(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = FileSink(str(path), render)
    with pytest.raises(BlockingIOError):
        await sink.send([record(1, size=200_000)])
    os.close(reader)
    await asyncio.sleep(0)
    await sink.close()
