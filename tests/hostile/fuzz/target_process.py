"""A front to be fuzzed, in a process of its own: the real one but for its boxes (a channel is echoed) and its journal (counted).

`target_process.py LISTENING_FD DIRECTORY`: a line on stdin asks how it is, a line of JSON on stdout tells.
"""

import asyncio
import gc
import json
import os
import pwd
import socket
import sys
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict

import hermes.front  # noqa: F401  what the front has imported when it is confined
from hermes import log
from hermes.broker import filters
from hermes.config import LoggingConfig, ServerConfig, Settings
from hermes.confine.landlock import OWN, Files, Rule
from hermes.confine.process import confine
from hermes.events import Event
from hermes.server.hostkeys import load_or_make
from hermes.server.process import ChannelProcess
from hermes.server.ssh import Front
from hermes.server.visitor import Visitor


class CountingJournal:
    """Takes events, and holds none of them."""

    healthy = True

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def emit(self, event: Event) -> None:
        self.counts[event.tag()] = self.counts.get(event.tag(), 0) + 1


errors: list[str] = []


def _keep_errors(_logger: Any, method: str, event: EventDict) -> EventDict:
    if method in ("error", "critical", "exception") or event.get("level") in ("error", "critical"):
        errors.append(repr({key: value for key, value in event.items() if key != "exc_info"})[:2000])
    return event


async def echo(visitor: Visitor, process: ChannelProcess) -> None:
    """What a channel gets: its own input; an exec also half a megabyte, so that windows matter."""
    visitor.channel_running(process, recording=None)
    if process.kind == "exec":
        for _ in range(16):
            process.stdout.write(bytes(32768))
            await process.stdout.drain()
    while data := await process.stdin.read():
        process.stdout.write(data)
        await process.stdout.drain()
    process.exit(0)


async def serve(listening: socket.socket, keys: Path) -> None:
    """Serve until stdin closes."""
    loop = asyncio.get_running_loop()
    log.handle_loop_exceptions(loop)
    settings = Settings(
        server=ServerConfig(max_auth_tries=20, login_timeout=60, max_connections=100_000, max_startups="10000:30:20000")
    )
    journal = CountingJournal()
    front = Front(settings, journal, load_or_make(keys), handler=echo)
    await front.listen([listening])
    questions = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    print("ready", flush=True)
    while await questions.readline():
        print(json.dumps(state(front, journal)), flush=True)
        errors.clear()
    await front.close()


def state(front: Front, journal: CountingJournal) -> dict[str, Any]:
    """How the front is: what it holds, what it logged since it was asked last."""
    if os.environ.get("HERMES_TEST_COLLECT"):
        gc.collect()
    events = journal.counts
    return {
        "visitors": len(front.visitors),
        "channels": len(front._tasks),
        "tasks": len(asyncio.all_tasks()),
        "unclosed": events.get("connection.opened", 0) - events.get("connection.closed", 0),
        "unended": events.get("session.opened", 0) - events.get("session.closed", 0),
        "hanging": events.get("channel.opened", 0) - events.get("channel.closed", 0),
        "pages": int(Path("/proc/self/statm").read_text().split()[1]),
        "errors": list(errors),
    }


def main() -> None:
    listening = socket.socket(fileno=int(sys.argv[1]))
    log.configure(LoggingConfig(), process="front")
    structlog.configure(processors=[_keep_errors, *structlog.get_config()["processors"]])
    os.environ["HOME"] = "/nonexistent"
    place = Path(sys.argv[2])
    load_or_make(place / "keys")
    if os.geteuid() == 0:
        account = pwd.getpwnam("hermes")
        for path in (place, *place.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid)
        rules = [Rule(place, OWN), Rule(Path("/proc/self"), Files.READ_FILE)]
        confine("hermes", filters.front(), rules)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)  # as the front does
    asyncio.run(serve(listening, place / "keys"))


if __name__ == "__main__":
    main()
