"""A process beside the front that follows the journal: started by the launcher as root, it gives up all power, then works."""

import argparse
import asyncio
import concurrent.futures.thread  # noqa: F401  imported lazily, when it may be out of our reach
import contextlib
import encodings.idna  # noqa: F401  as well
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence

from hermes import log
from hermes.config import Settings
from hermes.confine.landlock import Rule
from hermes.confine.process import confine
from hermes.container import Report
from hermes.errors import HermesError
from hermes.tasks import TaskOwner

NICE = 5
"""Attackers come first."""

Work = Callable[[Settings, Report], Coroutine[None, None, None]]


def run(
    name: str,
    *,
    rules: Callable[[Settings], Sequence[Rule]],
    work: Work,
    before: Callable[[Settings, bytes], None] = lambda settings, look_filter: None,
    connects: bool = False,
) -> None:
    """Run `work` (which says `ready`) until the launcher ends this process or is gone. Exits 0 then, 1 when it cannot go on.

    `rules`: the files it may use; `before` is called while it still has root's power and all files, with the filter for who
    looks at files for it, if any; `connects`: it may connect to others.
    """
    parser = argparse.ArgumentParser(prog=f"hermes {name}-process")
    parser.add_argument("--settings", type=int, required=True, help="fd of the settings as JSON")
    parser.add_argument("--filter", type=int, required=True, help="fd of the seccomp filter to submit to")
    parser.add_argument("--look-filter", type=int, help="fd of the one that those submit to who look at files for it")
    parser.add_argument("--control", type=int, required=True, help="fd of a socket that closes when the launcher is gone")
    parser.add_argument("--status", type=int, required=True, help="fd to write lines to: ready, failed, alive")
    parser.add_argument("--lock", type=int, help="fd of the data directory's lock, held by being open")
    fds = parser.parse_args(sys.argv[2:])
    with os.fdopen(fds.settings, "rb") as file:
        settings = Settings.model_validate_json(file.read())
    log.configure(settings.logging, process=name)
    report = Report(fds.status)
    os.nice(NICE)
    try:
        with os.fdopen(fds.filter, "rb") as file:
            program = file.read()
        look_filter = b""
        if fds.look_filter is not None:
            with os.fdopen(fds.look_filter, "rb") as file:
                look_filter = file.read()
        os.environ |= {"SQLITE_TMPDIR": str(settings.index_dir), "HOME": "/nonexistent"}
        before(settings, look_filter)
        gc.collect()
        gc.freeze()  # whoever it forks shares what is there by now
        confine(settings.sensor.user, program, rules(settings), connects=connects)
        asyncio.run(_until_asked(settings, work, report, socket.socket(fileno=fds.control)))
    except HermesError as error:
        report(f"failed {error}")
        raise SystemExit(1) from None


async def _until_asked(settings: Settings, work: Work, report: Report, control: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    log.handle_loop_exceptions(loop)
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    control.setblocking(False)
    loop.add_reader(control, over.set)  # nothing is ever said: it is readable when it has closed
    async with TaskOwner("background") as tasks:
        tasks.spawn(report.stay_alive(), name="alive")
        working = tasks.spawn(_outcome(work(settings, report)), name="work")
        ending = tasks.spawn(over.wait(), name="end")
        await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            if (error := await working) is not None:
                raise error


async def _outcome(work: Coroutine[None, None, None]) -> HermesError | None:
    """Why it cannot go on, where it says so itself."""
    try:
        await work
    except HermesError as error:
        return error
    return None
