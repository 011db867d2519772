"""The async testing guide, pattern by pattern and in its order, against the real modules of Hermes."""

import asyncio
import inspect
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from unittest.mock import AsyncMock, MagicMock, patch

import pytest

import hermes.__main__
from hermes.__main__ import container_session_handler
from hermes.config import RecordingConfig
from hermes.container import Container, ContainerPool
from hermes.errors import AllocationError
from hermes.recording import SessionRecorder
from hermes.server.backend import PTYRequest, SessionInfo
from hermes.testing import FakePool


class TestAsyncMockVsMagicMock:
    """What is sync and what is async: the guide's mocks, held against the real classes."""

    def test_magic_mock_for_synchronous_methods(self) -> None:
        mock_container = MagicMock()
        mock_container.id = "abc123"
        mock_container.stop = MagicMock()

        mock_container.stop()
        mock_container.stop.assert_called_once()

        assert not inspect.iscoroutinefunction(Container.stop)

    @pytest.mark.asyncio
    async def test_async_mock_for_async_methods(self, mock_container: MagicMock) -> None:
        mock_pool = MagicMock()
        mock_pool.allocate = AsyncMock()
        mock_pool.allocate.return_value = mock_container

        container = await mock_pool.allocate("session-id")

        assert container is mock_container
        assert inspect.iscoroutinefunction(ContainerPool.allocate)
        assert inspect.iscoroutinefunction(ContainerPool.release)

    @pytest.mark.asyncio
    async def test_mixed_mock(self) -> None:
        process = MagicMock()
        process.stdin = AsyncMock()
        process.stdout = MagicMock()
        process.stdout.write = MagicMock()
        process.stdout.drain = AsyncMock()
        process.exit = MagicMock()
        process.stdin.read.return_value = b"typed"

        data = await process.stdin.read()
        process.stdout.write(data)
        await process.stdout.drain()
        process.exit()

        process.stdout.write.assert_called_once_with(b"typed")
        process.stdout.drain.assert_awaited_once()
        process.exit.assert_called_once_with()

    @pytest.mark.asyncio
    async def test_the_plugins_mocks_are_made_the_same_way(
        self, mock_pool: MagicMock, mock_container: MagicMock, mock_process: MagicMock, mock_recorder: MagicMock
    ) -> None:
        assert await mock_pool.allocate("session-id") is mock_container
        assert await mock_pool.release("session-id") is None
        assert isinstance(mock_container.id, str)
        mock_container.stop()
        assert await mock_process.stdin.read() == b""
        mock_process.stdout.write(b"x")
        await mock_process.stdout.drain()
        mock_process.exit()
        mock_recorder.output(b"x")


class TestAwaiting:
    @pytest.mark.asyncio
    async def test_check_async_mock_return_values(self) -> None:
        mock_pool = MagicMock()
        mock_pool.allocate = AsyncMock(return_value="my_container")

        container = await mock_pool.allocate("session-id")
        assert container == "my_container"

        not_awaited = mock_pool.allocate("session-id")
        assert inspect.iscoroutine(not_awaited)
        not_awaited.close()

    @pytest.mark.asyncio
    async def test_side_effects_with_async_mock(
        self, mock_pool: MagicMock, session_info: SessionInfo, pty_request: PTYRequest, mock_process: MagicMock
    ) -> None:
        mock_pool.allocate = AsyncMock(side_effect=RuntimeError("pool exhausted"))

        with pytest.raises(RuntimeError, match="pool exhausted"):
            await container_session_handler(session_info, pty_request, mock_process, mock_pool)

        mock_pool.release.assert_not_called()
        assert issubclass(AllocationError, RuntimeError)


class TestConcurrentOperations:
    @pytest.mark.asyncio
    async def test_concurrent_allocations(self, mock_pool: MagicMock, mock_container: MagicMock) -> None:
        mock_pool.allocate = AsyncMock(return_value=mock_container)

        results = await asyncio.gather(
            mock_pool.allocate("session-1"),
            mock_pool.allocate("session-2"),
            mock_pool.allocate("session-3"),
        )

        assert len(results) == 3
        assert mock_pool.allocate.call_count == 3

    @pytest.mark.asyncio
    async def test_concurrent_allocations_of_a_real_pool(self) -> None:
        async with FakePool() as pool:
            results = await asyncio.gather(
                pool.allocate("session-1"),
                pool.allocate("session-2"),
                pool.allocate("session-3"),
            )
            assert len({container.id for container in results}) == 3

    @pytest.mark.asyncio
    async def test_creates_background_task(self, mock_recorder: MagicMock) -> None:
        async def dummy_operation() -> str:
            await asyncio.sleep(0)
            mock_recorder.output(b"x")
            return "done"

        task = asyncio.create_task(dummy_operation())
        await task
        assert task.done()
        mock_recorder.output.assert_called_once_with(b"x")

    @pytest.mark.asyncio
    async def test_sessions_handled_at_once_get_a_release_each(self, mock_pool: MagicMock, mock_process: MagicMock) -> None:
        sessions = [SessionInfo(f"session-{n}", "root", "192.0.2.1", 1000 + n, authenticated=True) for n in range(5)]
        with patch("hermes.__main__.ContainerProxy", return_value=AsyncMock()):
            async with asyncio.TaskGroup() as group:
                for info in sessions:
                    group.create_task(container_session_handler(info, None, mock_process, mock_pool))
        asked = [call.args for call in mock_pool.allocate.await_args_list]
        given_back = [call.args for call in mock_pool.release.await_args_list]
        assert sorted(asked) == sorted(given_back) == [(f"session-{n}",) for n in range(5)]


class AsyncContextManager:
    """What the guide patches."""


class TestAsyncContextManagers:
    @pytest.mark.asyncio
    async def test_context_manager_lifecycle(self) -> None:
        class MockContextManager:
            entered = exited = False

            async def __aenter__(self) -> "MockContextManager":
                self.entered = True
                return self

            async def __aexit__(
                self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
            ) -> None:
                self.exited = True

        cm = MockContextManager()
        async with cm as resource:
            assert resource is cm
            assert cm.entered
            assert not cm.exited

        assert cm.exited

    @pytest.mark.asyncio
    async def test_with_async_context(self) -> None:
        mock_cm = AsyncMock()
        mock_cm.__aenter__ = AsyncMock(return_value="resource")
        mock_cm.__aexit__ = AsyncMock()

        with patch(f"{__name__}.AsyncContextManager", return_value=mock_cm):
            async with AsyncContextManager() as resource:  # type: ignore[attr-defined]
                assert resource == "resource"

            mock_cm.__aexit__.assert_called_once()


class TestAsyncGenerators:
    @pytest.mark.asyncio
    async def test_async_generator(self) -> None:
        async def async_generator() -> AsyncIterator[int]:
            yield 1
            yield 2
            yield 3

        results = []
        async for value in async_generator():
            results.append(value)  # noqa: PERF401

        assert results == [1, 2, 3]


class TestTimeouts:
    @pytest.mark.asyncio
    async def test_operation_completes_within_timeout(self) -> None:
        async def slow_operation() -> str:
            await asyncio.sleep(0.1)
            return "done"

        result = await asyncio.wait_for(slow_operation(), timeout=1.0)
        assert result == "done"

    @pytest.mark.asyncio
    async def test_operation_times_out(self) -> None:
        async def very_slow_operation() -> str:
            await asyncio.sleep(10)
            return "done"

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(very_slow_operation(), timeout=0.1)

    @pytest.mark.asyncio
    async def test_a_session_that_times_out_gives_its_container_back(
        self, mock_pool: MagicMock, session_info: SessionInfo, pty_request: PTYRequest, mock_process: MagicMock
    ) -> None:
        with patch("hermes.__main__.ContainerProxy") as proxy_class:
            proxy = proxy_class.return_value = AsyncMock()
            proxy.wait_completion.side_effect = asyncio.Event().wait
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(
                    container_session_handler(session_info, pty_request, mock_process, mock_pool), timeout=0.05
                )
        proxy.stop.assert_awaited_once()
        mock_pool.release.assert_awaited_once_with("test-session")


class TestCommonPitfalls:
    @pytest.mark.asyncio
    async def test_pitfall_1_forgetting_to_await(self) -> None:
        async def async_function() -> str:
            return "result"

        result = async_function()
        assert inspect.iscoroutine(result)
        result.close()
        assert await async_function() == "result"

    @pytest.mark.asyncio
    async def test_pitfall_2_return_value_not_set(self) -> None:
        unset = await AsyncMock()()
        assert unset != "expected"
        mock = AsyncMock(return_value="expected")
        assert await mock() == "expected"

    def test_pitfall_3_not_marking_the_test(self, pytestconfig: pytest.Config) -> None:
        assert pytestconfig.getini("asyncio_mode") == "strict"

    @pytest.mark.asyncio
    async def test_pitfall_4_mixing_sync_and_async(self) -> None:
        process = AsyncMock()
        process.write = MagicMock()
        with pytest.raises(TypeError):
            await process.write("data")

        process.write = AsyncMock()
        await process.write("data")
        process.write.assert_awaited_once_with("data")

    def test_pitfall_5_suppressing_warnings(self) -> None:
        async def async_function() -> None: ...

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async_function()  # type: ignore[unused-coroutine]
        assert "was never awaited" in str(caught[0].message)

    def test_unawaited_coroutines_fail_our_own_tests(self, pytestconfig: pytest.Config) -> None:
        assert "error" in pytestconfig.getini("filterwarnings")


@pytest.mark.asyncio
async def test_handles_allocation_and_records_session(tmp_path: Path) -> None:
    """The guide's complete example, as it stands there."""
    # Arrange: Set up mocks
    recording_config = RecordingConfig(
        enabled=True,
        output_dir=tmp_path / "recordings",
    )

    mock_pool = MagicMock()
    mock_container = MagicMock()
    mock_container.id = "container-123"
    mock_pool.allocate = AsyncMock(return_value=mock_container)
    mock_pool.release = AsyncMock()

    session_info = SessionInfo(
        session_id="test-session",
        username="testuser",
        source_ip="192.168.1.1",
        source_port=12345,
        authenticated=True,
    )

    # Act: Call async function
    with patch("hermes.__main__.ContainerProxy") as MockProxy:
        proxy = AsyncMock()
        MockProxy.return_value = proxy

        await container_session_handler(
            session_info=session_info,
            pty_request=PTYRequest(term_type="xterm", width=120, height=40),
            process=MagicMock(),
            container_pool=mock_pool,
            recording_config=recording_config,
        )

    # Assert: Verify behavior
    mock_pool.allocate.assert_called_once_with("test-session")
    mock_pool.release.assert_called_once_with("test-session")
    proxy.start.assert_called_once()
    proxy.wait_completion.assert_called_once()
    proxy.stop.assert_called_once()
    assert (tmp_path / "recordings").exists()


class TestFixedContract:
    """What others build on: names, order and defaults of the handler, and that it gives back what it took."""

    def test_the_handlers_signature(self) -> None:
        parameters = inspect.signature(container_session_handler).parameters
        fixed = ["session_info", "pty_request", "process", "container_pool", "recording_config"]
        assert list(parameters)[:5] == fixed
        assert [parameters[name].default for name in fixed] == [inspect.Parameter.empty] * 4 + [None]
        for name in list(parameters)[5:]:
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
            assert parameters[name].default is not inspect.Parameter.empty

    def test_the_plain_data(self) -> None:
        info = SessionInfo("id", "root", "192.0.2.1", 22)
        assert info.authenticated is False
        assert PTYRequest("xterm", 80, 24) == PTYRequest(term_type="xterm", width=80, height=24)
        assert RecordingConfig(enabled=False, output_dir=None).enabled is False

    def test_the_names_it_looks_up(self) -> None:
        assert vars(hermes.__main__)["SessionRecorder"] is SessionRecorder
        for method in ("start", "wait_completion", "stop"):
            assert inspect.iscoroutinefunction(getattr(vars(hermes.__main__)["ContainerProxy"], method))

    @pytest.mark.asyncio
    async def test_without_recording_nothing_is_written(
        self, tmp_path: Path, mock_pool: MagicMock, session_info: SessionInfo, mock_process: MagicMock
    ) -> None:
        config = RecordingConfig(enabled=False, output_dir=tmp_path / "recordings")
        with (
            patch("hermes.__main__.ContainerProxy", return_value=AsyncMock()),
            patch("hermes.__main__.SessionRecorder") as recorder,
        ):
            await container_session_handler(session_info, None, mock_process, mock_pool, config)
        recorder.assert_not_called()
        assert not (tmp_path / "recordings").exists()

    @pytest.mark.asyncio
    @pytest.mark.parametrize("failing", ["start", "wait_completion", "stop"])
    @pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, RuntimeError])
    async def test_whatever_goes_wrong_the_container_is_released_and_the_proxy_stopped(
        self,
        mock_pool: MagicMock,
        session_info: SessionInfo,
        mock_process: MagicMock,
        failing: str,
        error: type[BaseException],
    ) -> None:
        proxy = AsyncMock()
        getattr(proxy, failing).side_effect = error
        with patch("hermes.__main__.ContainerProxy", return_value=proxy), pytest.raises(error):
            await container_session_handler(session_info, None, mock_process, mock_pool)
        proxy.stop.assert_called_once()
        mock_pool.release.assert_called_once_with("test-session")

    @pytest.mark.asyncio
    async def test_a_recorder_that_cannot_start_releases_the_container(
        self, tmp_path: Path, mock_pool: MagicMock, session_info: SessionInfo, mock_process: MagicMock
    ) -> None:
        with (
            patch("hermes.__main__.SessionRecorder", side_effect=OSError("disk full")),
            pytest.raises(OSError, match="disk full"),
        ):
            await container_session_handler(
                session_info, None, mock_process, mock_pool, RecordingConfig(enabled=True, output_dir=tmp_path)
            )
        mock_pool.release.assert_called_once_with("test-session")

    @pytest.mark.asyncio
    async def test_cancelled_at_each_await_it_holds_nothing(
        self, tmp_path: Path, session_info: SessionInfo, pty_request: PTYRequest, mock_process: MagicMock
    ) -> None:
        """Let the handler take one turn more each time, then cancel it: whatever was allocated is released."""
        config = RecordingConfig(enabled=True, output_dir=tmp_path)
        finished = False
        turns = 0
        while not finished:
            pool, proxy = _counting_pool(), _slow_proxy()
            with patch("hermes.__main__.ContainerProxy", return_value=proxy):
                task = asyncio.create_task(
                    container_session_handler(session_info, pty_request, mock_process, pool, config, channel=turns)
                )
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            finished = not task.cancelled()
            assert pool.held == 0, f"cancelled after {turns} turns"
            assert proxy.stop.call_count == proxy.start.call_count
            turns += 1
            assert turns < 200
        assert turns > 5


def _twice(result: object = None) -> Callable[..., object]:
    async def step(*_: object) -> object:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return result

    return step


def _slow_proxy() -> MagicMock:
    proxy = MagicMock()
    for method in ("start", "wait_completion", "stop"):
        setattr(proxy, method, AsyncMock(side_effect=_twice()))
    return proxy


def _counting_pool() -> MagicMock:
    pool = MagicMock(held=0)

    async def allocate(_: str) -> MagicMock:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pool.held += 1
        return MagicMock(id="container-123")

    async def release(_: str) -> None:
        pool.held -= 1

    pool.allocate = AsyncMock(side_effect=allocate)
    pool.release = AsyncMock(side_effect=release)
    return pool
