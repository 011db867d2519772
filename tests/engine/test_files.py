"""The files of real boxes: whatever is written or executed in one is kept by its content, or it is stated why not."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from hermes import artifacts, events
from hermes.broker.artifacts import Budgets, prepare
from hermes.broker.engines.base import Box, Engine
from hermes.broker.files import Files
from hermes.testing.boxes import BoxClient, eventually
from hermes.testing.watching import Watching
from tests.engine.conftest import CASES, Case

pytestmark = [
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120, func_only=True),
]


@pytest.fixture(scope="module", params=["local", "docker-spawner"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Engines whose boxes are processes of this kernel."""
    return CASES[request.param](request, tmp_path_factory.mktemp("engine"))


class Caught:
    """What a box's files came to."""

    watching: Watching

    def __init__(self, box: Box, directory: Path, **changes: Any) -> None:
        self.directory = directory
        self.events: list[events.Event] = []
        known: dict[str, Any] = {
            "directory": str(directory), "group": 0, "file_bytes": 8 << 20, "session_bytes": 64 << 20, "session_entries": 50_000,
            "backlog": 65_536, "min_free": 0, "end_seconds": 30,
        }  # fmt: skip
        prepare(str(directory), 0)
        self.part = Files(
            box.pid, container_id=box.id, budgets=Budgets(**(known | changes)), emit=lambda event, _: self.events.append(event)
        )

    def of(self, kind: type[Any], path: str | None = None) -> list[Any]:
        return [it for it in self.events if isinstance(it, kind) and (path is None or it.path == path)]

    def content(self, sha256: str) -> bytes:
        return artifacts.path(self.directory, sha256).read_bytes()

    async def one(self, kind: type[Any], path: str) -> Any:
        """The first such event, once it is there."""

        async def there() -> bool:
            return bool(self.of(kind, path))

        await eventually(there)
        return self.of(kind, path)[0]


Catch = Callable[..., Any]


@pytest.fixture
def catch(box: Box, tmp_path: Path) -> Catch:
    @contextmanager
    def catch(**changes: Any) -> Iterator[Caught]:
        caught = Caught(box, tmp_path / "artifacts", **changes)
        with Watching(caught.part) as caught.watching:
            yield caught

    return catch


@pytest.mark.parametrize("where", ["/root", "/tmp", "/dev/shm", "/run"])
async def test_what_is_unlinked_the_next_moment_is_kept(client: BoxClient, catch: Catch, where: str) -> None:
    with catch() as caught:
        await client.output(f"echo payload-$((6*7)) >{where}/x; rm {where}/x")
        written = await caught.one(events.FileWritten, f"{where}/x")
    assert caught.content(written.sha256) == b"payload-42\n"
    assert written.skipped is None
    stored = caught.of(events.ArtifactStored, f"{where}/x")
    assert [(it.md5, it.size, it.known) for it in stored] == [(hashlib.md5(b"payload-42\n").hexdigest(), 11, False)]


async def test_what_is_executed_is_told_from_the_images_own(client: BoxClient, catch: Catch) -> None:
    with catch() as caught:
        await client.output("ls / >/dev/null; cp /bin/true /tmp/evil; /tmp/evil; rm /tmp/evil; id >/dev/null")
        executed = await caught.one(events.FileExecuted, "/tmp/evil")
    assert caught.content(executed.sha256)[:4] == b"\x7fELF"
    assert [it.path for it in caught.of(events.FileExecuted)] == ["/tmp/evil"]


async def test_a_storm_loses_none(client: BoxClient, catch: Catch) -> None:
    script = """
import os
os.mkdir("/tmp/s")
for i in range(3000):
    with open(f"/tmp/s/{i}", "w") as file:
        file.write(str(i))
    os.unlink(file.name)
"""
    with catch() as caught:
        await client.run(None, b"python3", b"-", stdin=script.encode())
    found = {it.path: it for it in caught.of(events.FileWritten) if it.path.startswith("/tmp/s/")}
    assert len(found) == 3000
    assert all(caught.content(it.sha256).decode() == path.rpartition("/")[2] for path, it in found.items())


async def test_a_file_written_over_and_over_is_kept_at_first_and_at_last(client: BoxClient, catch: Catch) -> None:
    with catch() as caught:
        await client.output("echo first >/tmp/log")
        first = await caught.one(events.FileWritten, "/tmp/log")
        await client.output("for i in $(seq 300); do /bin/echo $i >>/tmp/log; done")
    written = caught.of(events.FileWritten, "/tmp/log")
    assert caught.content(first.sha256) == b"first\n"
    assert caught.content(written[-1].sha256).splitlines()[-1] == b"300"
    assert len(written) < 30
    assert sum(1 + it.repeated for it in written) == 301


PROGRAM = """
import os, sys
memory = os.memfd_create("loader")
with open("/bin/sleep", "rb") as file:
    os.write(memory, file.read())
print(memory, flush=True)
sys.stdin.readline()
os.execve(memory, ["x", sys.argv[1]], {})
"""


def with_memfd(name: str) -> int:
    """The process that has, or is, a memfd of that name."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            for link in (entry / "exe", entry / "fd" / "3"):
                with suppress(OSError):
                    if str(link.readlink()).startswith(f"/memfd:{name}"):
                        return int(entry.name)
    raise AssertionError("no such process")


@pytest.mark.parametrize("before", [True, False], ids=["while it waits", "afterwards"])
async def test_a_memfd_that_is_executed_is_kept(client: BoxClient, catch: Catch, before: bool) -> None:
    with catch() as caught:
        process = await client.start(None, b"python3", b"-c", PROGRAM.encode(), b"0" if before else b"30")
        descriptor = int(await process.read_until(b"\n"))
        pid = with_memfd("loader")
        if before:
            caught.watching.ask(lambda: caught.part.executing(pid, descriptor))
        await process.write(b"go\n")
        if before:
            await process.wait()
        else:

            async def is_executed() -> bool:
                return str(Path(f"/proc/{pid}/exe").readlink()).startswith("/memfd:")

            await eventually(is_executed)
            caught.watching.ask(lambda: caught.part.executed(pid))
            caught.watching.ask(lambda: caught.part.executed(pid))
        process.close()
    (executed,) = caught.of(events.FileExecuted)
    assert executed.path == "/memfd:loader"
    assert executed.deleted
    assert executed.pid is not None
    assert hashlib.sha256(caught.content(executed.sha256)).hexdigest() == executed.sha256
    assert [it.source for it in caught.of(events.ArtifactStored, "/memfd:loader")] == ["executed"]


async def test_a_deleted_file_that_is_executed_is_kept(client: BoxClient, catch: Catch) -> None:
    with catch() as caught:
        await client.output("cp /bin/true '/tmp/x (deleted)'; exec 7<'/tmp/x (deleted)'; rm /tmp/x*; /proc/self/fd/7")
    (executed,) = caught.of(events.FileExecuted)
    assert (executed.path, executed.deleted) == ("/tmp/x (deleted)", True)
    assert caught.content(executed.sha256)[:4] == b"\x7fELF"


async def test_a_name_that_only_looks_deleted(client: BoxClient, catch: Catch) -> None:
    with catch() as caught:
        await client.output("echo x >'/tmp/x (deleted)'")
        assert (await caught.one(events.FileWritten, "/tmp/x (deleted)")).sha256


async def test_sparse_files_are_neither_read_through_nor_fill_the_disk(box: Box, client: BoxClient, catch: Catch) -> None:
    with catch() as caught:
        for name, size in (("huge", 100 << 30), ("holes", 8 << 20)):
            with Path(f"/proc/{box.pid}/root/tmp/{name}").open("wb") as file:  # a box may not make it as large as that
                file.write(b"payload")
                file.truncate(size)
        huge = await caught.one(events.FileWritten, "/tmp/huge")
        holes = await caught.one(events.FileWritten, "/tmp/holes")
    assert (huge.size, huge.sha256, huge.skipped) == (100 << 30, None, "larger than artifacts.file_bytes")
    assert caught.content(holes.sha256) == b"payload".ljust(8 << 20, b"\0")
    assert artifacts.path(caught.directory, holes.sha256).stat().st_blocks * 512 < 1 << 20


async def test_what_is_no_file_is_left_alone(client: BoxClient, catch: Catch) -> None:
    with catch() as caught:
        bind = "import socket; socket.socket(socket.AF_UNIX).bind('/tmp/s')"
        await client.output(f'mkfifo /tmp/f; cat /tmp/f >/dev/null & echo x >/tmp/f; wait; python3 -c "{bind}"')
        await client.output("echo x >/dev/null; ln -s /etc/shadow /tmp/l; echo >/tmp/end")
        await caught.one(events.FileWritten, "/tmp/end")
    assert {it.path for it in caught.of(events.FileWritten)} & {"/dev/null", "/tmp/f", "/tmp/s", "/tmp/l"} == set()


HOSTILE = [
    b"\x1b]0;x\x07\x1b[2J",
    b"'; DROP TABLE events; --",
    b"<img src=x onerror=alert(1)>",
    b"line\nbreak",
    b"\xff\xfe\\",
    b"-rf",
    b"x" * 255,
]


async def test_hostile_names(box: Box, client: BoxClient, catch: Catch) -> None:
    with catch() as caught:
        for name in HOSTILE:
            await client.run(None, b"python3", b"-c", b"import sys; open(sys.argv[1], 'w').write('x')", b"/tmp/" + name)
        expected = {events.from_bytes(b"/tmp/" + name) for name in HOSTILE}
        for path in expected:
            await caught.one(events.FileWritten, path)
    assert list((caught.directory / ".incoming").iterdir()) == []


async def test_a_path_longer_than_the_kernel_can_say(client: BoxClient, catch: Catch) -> None:
    script = f"import os\nfor _ in range(30):\n os.mkdir('{'d' * 200}'); os.chdir('{'d' * 200}')\nopen('x', 'w').write('deep')"
    with catch() as caught:
        await client.run(None, b"python3", b"-", stdin=script.encode(), cwd=b"/tmp")
        written = await caught.one(events.FileWritten, "?")
    assert caught.content(written.sha256) == b"deep"


async def test_a_box_that_dies_while_its_files_are_copied(engine: Engine, catch: Catch, box: Box, client: BoxClient) -> None:
    with catch() as caught:
        said = await client.output(
            "for i in 1 2 3 4; do head -c 7000000 /dev/urandom >/tmp/$i; done; sha256sum /tmp/[1234] | cut -c -64; rm /tmp/[1234]"
        )
        await engine.destroy(box)
    assert {it.sha256 for it in caught.of(events.FileWritten)} >= set(said.split())
    assert all(hashlib.sha256(caught.content(it)).hexdigest() == it for it in said.split())


async def test_paths_are_whole_although_their_mounts_went_with_the_box(
    engine: Engine, box: Box, client: BoxClient, tmp_path: Path
) -> None:
    caught = Caught(box, tmp_path / "artifacts")
    paths = {f"{where}/left" for where in ("/root", "/run", "/dev/shm", "/run/run")}
    await client.output("mkdir /run/run; " + "; ".join(f"echo {path} >{path}" for path in paths))
    await engine.destroy(box)
    caught.part.close()
    assert paths <= {it.path for it in caught.of(events.FileWritten)}


async def test_what_is_still_open_when_the_box_dies_is_kept(engine: Engine, box: Box, client: BoxClient, tmp_path: Path) -> None:
    caught = Caught(box, tmp_path / "artifacts")
    mapped = (
        "import mmap; f = open('/tmp/mapped', 'w+b'); f.truncate(5); m = mmap.mmap(f.fileno(), 5); f.close(); m[:] = b'after'"
    )
    for line in ("exec 3>/tmp/open; echo open >&3", f'python3 -c "{mapped}; print(1, flush=True); import time; time.sleep(60)"'):
        await (await client.start(f"{line}; echo 1; sleep 60")).read_until(b"1\n")
    await engine.destroy(box)
    caught.part.close()
    contents = {it.path: caught.content(it.sha256) for it in caught.of(events.FileWritten)}
    assert (contents["/tmp/open"], contents["/tmp/mapped"]) == (b"open\n", b"after")


async def test_entries_are_limited_and_what_is_beyond_is_counted(client: BoxClient, catch: Catch) -> None:
    with catch(session_entries=100) as caught:
        await client.output("for i in $(seq 300); do echo $i >/tmp/$i; done")
    files = caught.of(events.FileWritten)
    limits = caught.of(events.LimitReached)
    assert len(files) == 100
    assert {it.limit for it in limits} == {"artifacts.session_entries"}
    assert len(files) + sum(1 + it.suppressed for it in limits) >= 300


async def test_a_storm_of_writes_does_not_hide_what_is_executed(client: BoxClient, catch: Catch) -> None:
    with catch(session_entries=100, session_bytes=200_000) as caught:
        await client.output("for i in $(seq 300); do echo $i $RANDOM >/tmp/$i; done; head -c 180000 /dev/urandom >/tmp/large")
        await client.output("cp /bin/true /tmp/payload; chmod +x /tmp/payload; /tmp/payload")
        executed = await caught.one(events.FileExecuted, "/tmp/payload")
    assert caught.content(executed.sha256)[:4] == b"\x7fELF"


async def test_a_flood_is_looked_away_from_for_a_while(box: Box, client: BoxClient, tmp_path: Path) -> None:
    caught = Caught(box, tmp_path / "artifacts", backlog=1024)
    await client.output("for i in $(seq 1500); do echo $i >/tmp/$i; done")
    with Watching(caught.part):
        await caught.one(events.FileWritten, "/tmp/1500")
        assert [it.limit for it in caught.of(events.LimitReached)] == ["artifacts.backlog"]

        async def is_caught_again() -> bool:
            await client.output("echo again >/tmp/again")
            return bool(caught.of(events.FileWritten, "/tmp/again"))

        await eventually(is_caught_again)
    assert len(caught.of(events.FileWritten)) >= 1500


async def test_what_cannot_be_kept_in_time_is_stated(client: BoxClient, box: Box, tmp_path: Path) -> None:
    caught = Caught(box, tmp_path / "artifacts", end_seconds=0)
    await client.output("echo x >/tmp/x")
    caught.part.close()
    (written,) = caught.of(events.FileWritten, "/tmp/x")
    assert (written.size, written.sha256, written.skipped) == (2, None, "artifacts.end_seconds reached")
