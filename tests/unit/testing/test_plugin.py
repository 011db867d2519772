import asyncio
import inspect
import subprocess
import sys
from pathlib import Path
from unittest.mock import AsyncMock, MagicMock

import pytest

from hermes.container import Container, ContainerPool
from hermes.recording import SessionRecorder
from hermes.server.backend import PTYRequest, SessionInfo


def test_mock_container_is_a_container(mock_container: MagicMock) -> None:
    assert isinstance(mock_container, Container)
    assert mock_container.id == "container-123"
    mock_container.stop()
    mock_container.stop.assert_called_once_with()
    assert isinstance(mock_container.spawn, AsyncMock)
    with pytest.raises(AttributeError):
        mock_container.no_such_method()


@pytest.mark.asyncio
async def test_mock_pool_gives_the_container_and_takes_it_back(mock_pool: MagicMock, mock_container: MagicMock) -> None:
    assert isinstance(mock_pool, ContainerPool)
    assert await mock_pool.allocate("one") is mock_container
    assert await mock_pool.release("one") is None
    mock_pool.allocate.assert_awaited_once_with("one")
    mock_pool.release.assert_awaited_once_with("one")
    with pytest.raises(AttributeError):
        mock_pool.no_such_method()


@pytest.mark.asyncio
async def test_mock_process_is_async_where_a_process_is(mock_process: MagicMock) -> None:
    assert await mock_process.stdin.read() == b""
    for stream in (mock_process.stdout, mock_process.stderr):
        assert not inspect.isawaitable(stream.write(b"x"))
        await stream.drain()
    mock_process.exit(3)
    mock_process.exit.assert_called_once_with(3)


def test_mock_recorder_is_sync_as_the_recorder_is(mock_recorder: MagicMock) -> None:
    assert isinstance(mock_recorder, SessionRecorder)
    assert not inspect.isawaitable(mock_recorder.output(b"x"))
    with pytest.raises(AttributeError):
        mock_recorder.no_such_method()


def test_plain_data(session_info: SessionInfo, pty_request: PTYRequest) -> None:
    assert session_info == SessionInfo("test-session", "testuser", "192.168.1.1", 12345, authenticated=True)
    assert pty_request == PTYRequest("xterm", 80, 24)


def test_loading_the_plugin_imports_nothing_of_hermes_or_beyond() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import hermes.testing.plugin;"
        "print(*sorted(set(sys.modules) - before), sep='\\n')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["hermes", "hermes.testing", "hermes.testing.plugin"]


def test_it_works_in_a_project_of_its_own_and_harms_none(tmp_path: Path) -> None:
    (tmp_path / "test_users_own.py").write_text(
        """
import sys

def test_nothing_is_loaded():
    assert not [name for name in sys.modules if name.startswith(("hermes.container", "hermes.broker", "asyncssh", "msgspec"))]

def test_fixtures_are_there(mock_pool, mock_container, mock_process, mock_recorder, session_info, pty_request):
    assert mock_pool.allocate.return_value is mock_container
"""
    )
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        "test_users_own.py",
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 passed" in run.stdout, run.stdout + run.stderr


def test_fixtures_bring_no_event_loop(mock_pool: MagicMock) -> None:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
