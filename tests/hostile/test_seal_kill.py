"""The front is killed while it seals, at any moment: every session is sealed once, in one chain that holds."""

import asyncio
import multiprocessing
import random
from pathlib import Path

from hermes.config import Settings
from hermes.evidence import chain, manifest, sealer
from hermes.evidence.sealer import Sealer
from hermes.evidence.verification import Verification
from hermes.store import Journal
from tests.unit.evidence.test_sealing import record
from tests.unit.store.facts import eventually, login, logout, stored

KILLS = 25


def _run(root: str, number: int, until_done: bool) -> None:
    """Have sessions come and go, and seal them; in the end only what is left."""

    async def main() -> None:
        sealer.GATHER_SECONDS = sealer.LEFT_SECONDS = 0.001
        sealer.BATCH = 3
        settings = Settings.model_validate({"data_dir": root})
        journal = Journal(settings.journal_path, sensor="s1")
        journal.open()
        one = Sealer(settings, journal)
        await one.start()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(one.run())
            if until_done:
                await eventually(lambda: not one.pending)
                await one.close()
                task.cancel()
            count = 0
            while not until_done:
                session_id = f"s{number}-{count}"
                record(settings.recordings_dir, session_id)
                for fact in (*login(session_id), *logout(session_id)):
                    journal.emit(fact)
                one.settled(session_id)
                count += 1
                await asyncio.sleep(0.001)
        journal.close()

    asyncio.run(main())


def test_killed_at_any_moment_every_session_is_sealed_once(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    settings.journal_dir.mkdir()
    choice = random.Random(20260131)
    context = multiprocessing.get_context("forkserver")
    for number in range(KILLS):
        process = context.Process(target=_run, args=(str(tmp_path), number, False))
        process.start()
        process.join(choice.uniform(0.4, 1.0))
        assert process.is_alive(), "it ended by itself"
        process.kill()
        process.join()
    last = context.Process(target=_run, args=(str(tmp_path), KILLS, True))
    last.start()
    last.join(120)
    assert last.exitcode == 0
    sealed = [manifest.decode(line) for _, line in chain.lines(settings.journal_dir / chain.NAME)]
    names = [one.session_id for one in sealed if one is not None]
    assert len(names) == len(sealed) == len(set(names))
    assert set(names) == set(stored(settings.journal_path, "SELECT session_id FROM sessions"))
    stated = stored(settings.journal_path, "SELECT session_id FROM events WHERE event = 'session.sealed' ORDER BY id")
    assert sorted(stated) == sorted(names), "each is stated once"
    assert len(names) > KILLS
    look = Verification(settings.journal_path, settings.recordings_dir, settings.artifacts_dir)
    assert list(look.findings()) == []
    assert look.summary.sessions == len(names)
