"""The story of one session: whatever goes wrong where, what was allocated is released and the recording is closed."""

import asyncio
import subprocess
import sys
from pathlib import Path
from unittest.mock import AsyncMock, MagicMock, patch

import pytest

from hermes.__main__ import container_session_handler
from hermes.config import RecordingConfig
from hermes.container import Exit
from hermes.errors import AllocationError, EngineError, RecordingError, SpawnError
from hermes.recording import SessionRecorder
from hermes.server.backend import PTYRequest, SessionInfo
from hermes.session.proxy import ContainerProxy


def a_proxy(**methods: object) -> MagicMock:
    """A proxy whose process ended with status 3, unless told otherwise."""
    proxy = MagicMock(spec=ContainerProxy)
    proxy.exit = Exit(status=3)
    proxy.configure_mock(**methods)
    return proxy


def test_help_of_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "hermes", "--help"], capture_output=True, check=True, text=True, timeout=60)
    assert {"up", "sessions", "image", "config", "doctor"} <= set(done.stdout.split())


@pytest.mark.asyncio
async def test_order_of_the_story(
    mock_pool: MagicMock, mock_process: MagicMock, session_info: SessionInfo, pty_request: PTYRequest
) -> None:  # fmt: skip
    story = MagicMock()
    story.attach_mock(mock_pool, "pool")
    recorder = MagicMock(spec=SessionRecorder)
    story.attach_mock(recorder, "recorder")
    proxy = a_proxy()
    story.attach_mock(proxy, "proxy")
    with (
        patch("hermes.__main__.ContainerProxy", return_value=proxy),
        patch("hermes.__main__.SessionRecorder", return_value=recorder),
    ):
        await container_session_handler(session_info, pty_request, mock_process, mock_pool, RecordingConfig())
    assert [call[0] for call in story.mock_calls] == [
        "pool.allocate", "recorder.start", "proxy.start", "proxy.wait_completion", "proxy.stop", "recorder.close", "pool.release",
    ]  # fmt: skip
    recorder.close.assert_called_once_with(exit_status=3, exit_signal=None)


@pytest.mark.asyncio
async def test_nothing_is_released_that_was_not_allocated(
    mock_pool: MagicMock, mock_process: MagicMock, session_info: SessionInfo
) -> None:  # fmt: skip
    mock_pool.allocate = AsyncMock(side_effect=AllocationError("pool exhausted"))
    with pytest.raises(RuntimeError, match="pool exhausted"):
        await container_session_handler(session_info, None, mock_process, mock_pool)
    mock_pool.release.assert_not_called()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "error", [SpawnError("no"), EngineError("gone"), OSError("odd"), TimeoutError(), asyncio.CancelledError()]
)
@pytest.mark.parametrize("where", ["start", "wait_completion", "stop"])
async def test_whatever_fails_all_is_let_go(
    mock_pool: MagicMock, mock_process: MagicMock, session_info: SessionInfo, tmp_path: Path, error: BaseException, where: str
) -> None:
    config = RecordingConfig(output_dir=tmp_path / "recordings")
    proxy = a_proxy(**{f"{where}.side_effect": error})
    fds = len(list(Path("/proc/self/fd").iterdir()))
    with patch("hermes.__main__.ContainerProxy", return_value=proxy), pytest.raises(type(error)):
        await container_session_handler(session_info, None, mock_process, mock_pool, config)
    mock_pool.release.assert_called_once_with("test-session")
    proxy.stop.assert_called_once()
    assert len(list(Path("/proc/self/fd").iterdir())) == fds


@pytest.mark.asyncio
async def test_a_session_that_cannot_be_recorded_does_not_begin(
    mock_pool: MagicMock, mock_process: MagicMock, session_info: SessionInfo, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    config = RecordingConfig(output_dir=tmp_path / "file" / "recordings")
    with patch("hermes.__main__.ContainerProxy") as proxy, pytest.raises(RecordingError):
        await container_session_handler(session_info, None, mock_process, mock_pool, config)
    proxy.assert_not_called()
    mock_pool.release.assert_called_once_with("test-session")


@pytest.mark.asyncio
async def test_recording_can_be_switched_off(
    mock_pool: MagicMock, mock_process: MagicMock, session_info: SessionInfo, tmp_path: Path
) -> None:
    config = RecordingConfig(enabled=False, output_dir=tmp_path / "recordings")
    with patch("hermes.__main__.ContainerProxy", return_value=a_proxy()) as proxy:
        await container_session_handler(session_info, None, mock_process, mock_pool, config)
    assert proxy.call_args.args[3] is None
    assert not (tmp_path / "recordings").exists()
