"""What is piped into a command is stated with its hash, and its recording gives it back."""

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest

from hermes import events
from hermes.__main__ import container_session_handler
from hermes.config import Settings
from hermes.evidence import artifacts
from hermes.front import Sessions
from hermes.tasks import TaskOwner
from hermes.testing.pool import FakePool
from tests.front.conftest import Serve

SCRIPT = b"echo installed\n" + b"# padding\n" * 20_000


@pytest.mark.asyncio
@pytest.mark.parametrize("command", ["sh", None])
async def test_a_script_that_is_piped_in(serve: Serve, tmp_path: Path, command: str | None) -> None:
    settings = Settings.model_validate({"data_dir": str(tmp_path), "recording": {"output_dir": str(tmp_path / "r")}})
    async with FakePool() as pool, TaskOwner("test") as tasks:
        journal: Any = None
        sessions = Sessions(settings, journal, pool, container_session_handler, tasks)  # type: ignore[arg-type]
        async with serve(sessions.run_channel) as running:
            async with running.connect() as connection:
                done = await connection.run(command, input=SCRIPT, encoding=None)
                assert b"installed\n" in done.stdout
                (stored,) = await running.journal.wait_for(events.ArtifactStored)
            await running.journal.wait_for(events.SessionClosed)
            await sessions.close()
        (written,) = running.journal.of(events.FileWritten)
        assert (written.path, written.size, written.channel) == ("", len(SCRIPT), 1)
        assert written.container_id.startswith("fake-")
        assert written.sha256 == stored.sha256 == hashlib.sha256(SCRIPT).hexdigest()
        assert stored.source == "input"
        out = io.BytesIO()
        inputs = [artifacts.Input(str(stored.session_id), 1)]
        artifacts.copy(stored.sha256, out, directory=settings.artifacts_dir, recordings=settings.recordings_dir, inputs=inputs)
        assert out.getvalue() == SCRIPT
        kinds = [type(it) for it in running.journal.events]
        assert kinds.index(events.ArtifactStored) < kinds.index(events.ChannelClosed)


@pytest.mark.asyncio
async def test_keystrokes_are_no_content(serve: Serve, tmp_path: Path) -> None:
    settings = Settings.model_validate({"data_dir": str(tmp_path), "recording": {"output_dir": str(tmp_path / "r")}})
    async with FakePool() as pool, TaskOwner("test") as tasks:
        journal: Any = None
        sessions = Sessions(settings, journal, pool, container_session_handler, tasks)  # type: ignore[arg-type]
        async with serve(sessions.run_channel) as running, running.connect() as connection:
            await connection.run(None, input="exit\n", term_type="xterm")
            await connection.run("true")
            await running.journal.wait_for(events.ChannelClosed, 2)
            await sessions.close()
        assert running.journal.of(events.FileWritten) == []
