"""Events to one sink: at least once, in order, whatever fails; the cursor moves only when they are there."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hermes import events
from hermes.config.outputs import AlertRule, JsonLinesOutput
from hermes.outputs import delivery
from hermes.outputs.sink import Record, SinkError
from hermes.store import cursors
from hermes.store.cursors import Cursor
from tests.unit.outputs.world import World, lines
from tests.unit.store.facts import eventually, stored, write

FROM_THE_BEGINNING = JsonLinesOutput(type="jsonl", name="siem", path="/x", start="beginning")


class Memory:
    """A sink that keeps what it takes, and fails as it is told to."""

    limit = 10

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.batches: list[list[Record]] = []
        self.tried = 0
        self.closed = False

    async def send(self, records: Sequence[Record]) -> None:
        self.tried += 1
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(list(records))

    async def close(self) -> None:
        self.closed = True

    @property
    def versions(self) -> list[int]:
        return [int(it.body["version"]) for batch in self.batches for it in batch if it.event == "connection.version"]


class Hanging(Memory):
    """A sink that never answers."""

    async def send(self, records: Sequence[Record]) -> None:
        self.tried += 1
        await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.01, 0.02))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.asyncio
async def test_everything_comes_in_order_and_no_more_at_once_than_the_sink_takes(world: World) -> None:
    world.count(0, 25)
    sink = Memory()
    async with world.running(FROM_THE_BEGINNING, sink):
        await eventually(lambda: len(sink.versions) == 25)
        world.count(25, 30)
        await eventually(lambda: len(sink.versions) == 30)
    assert sink.versions == list(range(30))
    assert max(map(len, sink.batches)) == 10
    assert sink.closed
    ids = [it.event_id for batch in sink.batches for it in batch]
    (identity,) = stored(world.journal, "SELECT identity FROM journal")
    assert ids == [f"{identity}:{it}" for it in range(1, 31)]


@pytest.mark.asyncio
async def test_one_that_begins_now_gets_what_comes_and_one_that_was_stopped_goes_on(world: World) -> None:
    world.count(0, 3)
    config = JsonLinesOutput(type="jsonl", name="siem", path="/x")
    sink = Memory()
    async with world.running(config, sink):
        await eventually(lambda: cursors.load(world.cursors, "siem") is not None)
        world.count(3, 5)
        await eventually(lambda: len(sink.versions) == 2)
        await eventually(lambda: (cursors.load(world.cursors, "siem") or Cursor()).id == 5)
    world.count(5, 7)
    await world.until(config, sink, lambda: len(sink.versions) == 4)
    assert sink.versions == [3, 4, 5, 6]


@pytest.mark.asyncio
async def test_a_sink_that_fails_gets_the_same_again_and_says_so_once(world: World) -> None:
    world.count(0, 3)
    sink = Memory(*(SinkError("answers 500") for _ in range(5)), OSError(28, "No space left on device"))
    with capture_logs() as logs:
        await world.until(FROM_THE_BEGINNING, sink, lambda: (cursors.load(world.cursors, "siem") or Cursor()).id == 3)
    assert sink.versions == [0, 1, 2]
    assert sink.tried == 7
    assert [it["event"] for it in logs] == ["an output does not deliver; what it should is kept", "an output delivers again"]


@pytest.mark.asyncio
async def test_the_cursor_waits_for_the_sink_and_tells_what_is_wrong(world: World) -> None:
    world.count(0, 3)
    sink = Memory(*(SinkError("answers 500") for _ in range(1_000_000)))

    def found() -> Cursor:
        return cursors.load(world.cursors, "siem") or Cursor()

    async with world.running(FROM_THE_BEGINNING, sink):
        await eventually(lambda: found().error == "answers 500")
        assert (found().id, found().failing_since is not None) == (0, True)
        sink.failures.clear()
        await eventually(lambda: found().id == 3)
        assert (found().failing_since, found().delivered) == (None, 3)


@pytest.mark.asyncio
async def test_a_cursor_that_cannot_be_saved_is_saved_later_and_what_was_sent_is_not_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.count(0, 3)
    sink, save, refusals = Memory(), cursors.save, [OSError(28, "No space left on device")] * 5

    def full(directory: Path, name: str, cursor: Cursor) -> None:
        if cursor.id and refusals:
            raise refusals.pop()
        save(directory, name, cursor)

    monkeypatch.setattr(cursors, "save", full)
    await world.until(FROM_THE_BEGINNING, sink, lambda: (cursors.load(world.cursors, "siem") or Cursor()).id == 3)
    assert sink.versions == [0, 1, 2]


@pytest.mark.asyncio
async def test_a_receiver_that_asks_to_wait_is_left_alone(world: World) -> None:
    world.count(0, 1)
    sink = Memory(SinkError("answers 429", after=3600))
    async with world.running(FROM_THE_BEGINNING, sink):
        await eventually(lambda: sink.tried == 1)
        await asyncio.sleep(0.2)
        assert sink.tried == 1


@pytest.mark.asyncio
async def test_a_sink_that_hangs_holds_up_no_other_and_little_is_kept_for_it(world: World) -> None:
    world.count(0, 1000)
    hanging, well = Hanging(), Memory()
    other = JsonLinesOutput(type="jsonl", name="other", path="/y", start="beginning")
    async with world.running(FROM_THE_BEGINNING, hanging), world.running(other, well):
        await eventually(lambda: len(well.versions) == 1000)
        assert hanging.tried == 1
    assert (cursors.load(world.cursors, "siem") or Cursor()).id == 0


@pytest.mark.asyncio
async def test_a_bug_of_one_sink_stops_nothing_but_that_batch(world: World) -> None:
    world.count(0, 3)
    sink = Memory(ZeroDivisionError("a bug"))
    with capture_logs() as logs:
        await world.until(FROM_THE_BEGINNING, sink, lambda: len(sink.versions) == 3)
    (logged,) = [it for it in logs if it["log_level"] == "error"]
    assert isinstance(logged["exc_info"], ZeroDivisionError)


@pytest.mark.asyncio
async def test_a_cursor_that_cannot_be_read_is_not_overwritten(world: World) -> None:
    world.count(0, 3)
    (world.cursors / "siem.cursor").write_text("broken")
    sink = Memory()
    with capture_logs() as logs:
        await world.until(FROM_THE_BEGINNING, sink, lambda: len(logs) >= 2)
    assert sink.tried == 0
    assert "remove it" in logs[0]["reason"]
    assert (world.cursors / "siem.cursor").read_text() == "broken"


@pytest.mark.asyncio
async def test_only_what_is_wanted_comes_and_the_rest_counts_as_done(world: World) -> None:
    world.state(
        events.ClientVersion(connection_id="c", version="1"),
        events.GlobalRequest(connection_id="c", request="x"),
        events.ContainerLost(container_id="b"),
    )
    config = FROM_THE_BEGINNING.model_copy(update={"events": ("connection.re*", "container.lost")})
    sink = Memory()
    await world.until(config, sink, lambda: (cursors.load(world.cursors, "siem") or Cursor()).id == 3)
    assert [it.event for batch in sink.batches for it in batch] == ["connection.request", "container.lost"]


@pytest.mark.asyncio
async def test_what_was_removed_before_it_came_is_said_and_counted(world: World) -> None:
    world.count(0, 10)
    cursors.save(world.cursors, "siem", Cursor(journal=stored(world.journal, "SELECT identity FROM journal")[0], id=2))
    with sqlite3.connect(world.journal) as db:
        db.execute("DELETE FROM events WHERE id BETWEEN 3 AND 6")
    db.close()
    sink = Memory()
    with capture_logs() as logs:
        await world.until(FROM_THE_BEGINNING, sink, lambda: (cursors.load(world.cursors, "siem") or Cursor()).id == 10)
    assert sink.versions == [6, 7, 8, 9]
    assert (cursors.load(world.cursors, "siem") or Cursor()).missed == 4
    assert [it["reason"] for it in logs] == ["4 events were removed from the journal before they were sent"]


@pytest.mark.asyncio
async def test_what_was_removed_before_an_output_began_it_did_not_miss(world: World) -> None:
    world.count(0, 10)
    with sqlite3.connect(world.journal) as db:
        db.execute("DELETE FROM events WHERE id BETWEEN 3 AND 6")
    db.close()
    sink = Memory()
    with capture_logs() as logs:
        await world.until(FROM_THE_BEGINNING, sink, lambda: (cursors.load(world.cursors, "siem") or Cursor()).id == 10)
    assert sink.versions == [0, 1, 6, 7, 8, 9]
    assert (cursors.load(world.cursors, "siem") or Cursor()).missed == 0
    assert logs == []


@pytest.mark.asyncio
async def test_another_journal_is_followed_from_its_first_event_and_that_is_said(world: World) -> None:
    world.count(0, 5)
    sink = Memory()
    await world.until(FROM_THE_BEGINNING, sink, lambda: (cursors.load(world.cursors, "siem") or Cursor()).id == 5)
    for tail in ("", "-wal", "-shm"):
        Path(f"{world.journal}{tail}").unlink(missing_ok=True)
    write(world.journal, events.ClientVersion(connection_id="c", version="100"))
    with capture_logs() as logs:
        await world.until(FROM_THE_BEGINNING, sink, lambda: sink.versions[-1] == 100)
    assert "what an output had not sent of the journal before is lost to it" in [it["event"] for it in logs]


@pytest.mark.asyncio
async def test_alerts_count_each_event_once_whatever_fails(world: World) -> None:
    rule = AlertRule(name="many", output="siem", events=("connection.version",), count=3, within=3600, suppress=0)
    config = FROM_THE_BEGINNING.model_copy(update={"events": ()})
    sink = Memory(*(SinkError("no") for _ in range(3)))
    for upto in range(7):
        world.count(upto, upto + 1)
        async with world.running(config, sink, [rule]):
            await eventually(lambda last=upto + 1: (cursors.load(world.cursors, "siem") or Cursor()).id == last)  # type: ignore[misc]
    alerts = [it for batch in sink.batches for it in batch]
    assert [it.body["cause"]["version"] for it in alerts] == ["2", "5"]
    assert [it.event_id.split(":")[1:] for it in alerts] == [["3", "many"], ["6", "many"]]


def test_killed_at_any_moment_nothing_is_lost_and_nothing_is_double(world: World) -> None:
    """A process that delivers to a file is killed again and again, while a sensor goes on."""
    target = world.place / "out.jsonl"
    script = Path(__file__).with_name("deliver.py")
    dice = random.Random(4)
    count = 0
    for _ in range(6):
        world.count(count, count + 300)
        count += 300
        process = subprocess.Popen(
            [sys.executable, script, str(world.place), str(target)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
        )
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(dice.uniform(0.0, 0.08))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait(60)
        process.stdout.close()
    process = subprocess.Popen([sys.executable, script, str(world.place), str(target)], stdout=subprocess.PIPE)
    try:
        asyncio.run(eventually(lambda: (cursors.load(world.cursors, "siem") or Cursor()).id == count))
    finally:
        process.kill()
        process.communicate(timeout=60)
    found = lines(target)
    once = {it["event_id"]: it for it in found}
    assert [int(it["version"]) for it in sorted(once.values(), key=lambda it: it["id"])] == list(range(count))
    firsts = list(dict.fromkeys(it["event_id"] for it in found))
    assert [json.loads(it.split(":")[1]) for it in firsts] == list(range(1, count + 1))
