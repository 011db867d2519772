"""The pytest plugin: the fixtures of the testing guide. It imports nothing of Hermes until a fixture is asked for."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from unittest.mock import MagicMock

    from hermes.server.backend import PTYRequest, SessionInfo


@pytest.fixture
def mock_container() -> "MagicMock":
    """A container: a string `id`, a sync `stop()`, an async `spawn()`."""
    from unittest.mock import MagicMock

    from hermes.container import Container

    container = MagicMock(spec=Container)
    container.id = "container-123"
    container.engine = "fake"
    container.image = "fake"
    container.waited = 0.0
    return container


@pytest.fixture
def mock_pool(mock_container: "MagicMock") -> "MagicMock":
    """A pool whose async `allocate()` gives `mock_container`, with an async `release()`."""
    from unittest.mock import MagicMock

    from hermes.container import ContainerPool

    pool = MagicMock(spec=ContainerPool)
    pool.allocate.return_value = mock_container
    pool.release.return_value = None
    return pool


@pytest.fixture
def mock_process() -> "MagicMock":
    """The client's side of a channel: async `stdin.read()` (at end), sync `stdout.write()`, async `drain()`, sync `exit()`."""
    from unittest.mock import AsyncMock, MagicMock

    process = MagicMock()
    process.stdin = AsyncMock()
    process.stdin.read.return_value = b""
    for stream in (process.stdout, process.stderr):
        stream.write = MagicMock()
        stream.drain = AsyncMock()
    process.exit = MagicMock()
    return process


@pytest.fixture
def mock_recorder() -> "MagicMock":
    """A recorder that takes everything and keeps nothing; all of its methods are sync."""
    from unittest.mock import MagicMock

    from hermes.recording import SessionRecorder

    return MagicMock(spec=SessionRecorder)


@pytest.fixture
def session_info() -> "SessionInfo":
    """An authenticated session of `testuser`."""
    from hermes.server.backend import SessionInfo

    return SessionInfo(
        session_id="test-session", username="testuser", source_ip="192.168.1.1", source_port=12345, authenticated=True
    )


@pytest.fixture
def pty_request() -> "PTYRequest":
    """An xterm of 80 by 24."""
    from hermes.server.backend import PTYRequest

    return PTYRequest(term_type="xterm", width=80, height=24)
