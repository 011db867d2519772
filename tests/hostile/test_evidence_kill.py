"""Evidence is being removed when the process is killed, at any moment: nothing is left half, and each removal is stated once."""

import asyncio
import json
import multiprocessing
import random
from collections import Counter
from pathlib import Path

from hermes.config import Settings
from hermes.evidence import Keeper, keeper
from hermes.store import Journal
from tests.unit.evidence.test_shelves import on_disk, record
from tests.unit.store.facts import fact, login, logout, stored, write

KILLS = 25
SESSIONS = 400
STEP = 12
"""Sessions that may go in one run, about."""


def _keep(root: str, max_bytes: int, until_done: bool) -> None:
    """Hold the limit, and state facts besides; end by itself if `until_done`."""

    async def main() -> None:
        keeper.LOOK_SECONDS = keeper.TURN_SECONDS = 0.001
        settings = Settings.model_validate({"data_dir": root, "evidence": {"max_bytes": 2**20, "min_free": 0}})
        object.__setattr__(settings.evidence, "max_bytes", max_bytes)
        journal = Journal(settings.journal_path, sensor="s1", lines=None)
        journal.open()
        kept = Keeper(settings, journal, active=frozenset)
        await kept.start()
        if until_done:
            while await kept._turn():
                pass
            await kept._finish([])
            journal.close()
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(kept.run())
            while True:
                journal.emit(fact(1))
                await asyncio.sleep(0.002)

    asyncio.run(main())


def test_killed_at_any_moment_each_removal_is_whole_and_stated_once(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    (tmp_path / "journal").mkdir()
    names = [f"s{number:03}" for number in range(SESSIONS)]
    places = [record(recordings, f"2026-01-{1 + number % 20:02}", name, size=3000) for number, name in enumerate(names)]
    write(tmp_path / "journal" / "journal.db", *(event for name in names for event in (*login(name), *logout(name))))
    size, total = on_disk(places[0]), sum(map(on_disk, places))
    choice = random.Random(20260131)
    context = multiprocessing.get_context("forkserver")
    for number in range(KILLS):
        process = context.Process(target=_keep, args=(str(tmp_path), total - (number + 1) * STEP * size, False))
        process.start()
        process.join(choice.uniform(0.3, 1.0))
        assert process.is_alive(), "it ended by itself"
        process.kill()
        process.join()
        for place in recordings.glob("2026-*/*"):
            assert {path.name for path in place.iterdir()} == {"1.cast", "1.rec"}, "half of a session is left where readers look"
    last = context.Process(target=_keep, args=(str(tmp_path), total - (KILLS + 1) * STEP * size, True))
    last.start()
    last.join(60)
    assert last.exitcode == 0
    left = {f"{place.parent.name}/{place.name}" for place in recordings.glob("2026-*/*")}
    stated = stored(
        tmp_path / "journal" / "journal.db",
        "SELECT json_array(body ->> '$.path', body ->> '$.bytes') FROM events WHERE event = 'evidence.removed' ORDER BY id",
    )
    gone = [json.loads(each) for each in stated]
    assert max(Counter(path for path, _ in gone).values()) == 1
    assert {path for path, _ in gone} == {f"{place.parent.name}/{place.name}" for place in places} - left
    assert {taken for _, taken in gone} == {size}
    assert len(gone) >= (KILLS + 1) * STEP
    assert list((recordings / ".removing").iterdir()) == []
    assert stored(tmp_path / "journal" / "journal.db", "PRAGMA integrity_check") == ["ok"]
