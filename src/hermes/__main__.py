"""Everything is wired here: the story of one session, the front's process, and the command line."""

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from hermes.config import RecordingConfig
from hermes.container import ContainerPool, Exit
from hermes.recording import Quota, SessionRecorder
from hermes.server.backend import PTYRequest, SessionInfo
from hermes.session.proxy import ClientProcess, ContainerProxy


async def container_session_handler(
    session_info: SessionInfo,
    pty_request: PTYRequest | None,
    process: ClientProcess,
    container_pool: ContainerPool,
    recording_config: RecordingConfig | None = None,
    *,
    kind: str = "shell",
    command: bytes | None = None,
    env: Mapping[bytes, bytes] | None = None,
    channel: int = 0,
    recordings_dir: Path | None = None,
    session_quota: Quota | None = None,
    on_input: Callable[[bytes], None] | None = None,
    on_started: Callable[[SessionRecorder | None], None] | None = None,
) -> None:
    """Run one channel of a session in the session's container; return when it is over and its evidence is closed.

    Whatever happens at any await (an error, a timeout, a cancellation), what was allocated is released. Raises
    AllocationError, SpawnError, EngineError, RecordingError, ContainerLostError.
    """
    session_id = session_info.session_id
    container = await container_pool.allocate(session_id)
    try:
        async with contextlib.AsyncExitStack() as story:
            recorder = None
            if recording_config is not None and recording_config.enabled:
                recorder = SessionRecorder(
                    recording_config, session_info,
                    channel=channel, kind=kind, command=command, pty_request=pty_request, output_dir=recordings_dir,
                    session_quota=session_quota,
                )  # fmt: skip
                recorder.start()
            proxy = ContainerProxy(
                container, process, pty_request, recorder,
                user=session_info.username, command=command, env=env, channel=channel, on_input=on_input,
            )  # fmt: skip
            if recorder is not None:
                story.callback(_close, recorder, proxy)
            story.push_async_callback(proxy.stop)
            if on_started is not None:
                on_started(recorder)
            await proxy.start()
            await proxy.wait_completion()
    finally:
        await container_pool.release(session_id)


def _close(recorder: SessionRecorder, proxy: ContainerProxy) -> None:
    """Close the recording with what is known of the process's end."""
    end = proxy.exit if isinstance(proxy.exit, Exit) else Exit()
    recorder.close(exit_status=end.status, exit_signal=end.signal)


def main() -> None:
    """The `hermes` command; with `front-process` and the like, the unprivileged processes that `hermes up` starts."""
    match sys.argv[1:2]:
        case ["front-process"]:
            from hermes.front import main as front_main

            front_main(container_session_handler)
        case ["analyst-process"]:
            from hermes.analyst import main as analyst_main

            analyst_main()
        case ["outputs-process"]:
            from hermes.outlet import main as outputs_main

            outputs_main()
        case _:
            from hermes.cli import app

            app()


if __name__ == "__main__":
    main()
