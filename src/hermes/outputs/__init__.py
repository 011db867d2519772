"""Where events go besides the journal: sinks, each by itself, with a place in the journal of its own."""

import asyncio
import contextlib
import encodings.idna  # noqa: F401  imported lazily by the standard library
import gc  # noqa: F401  as well, by weakref at the end
import importlib
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import anyio._backends._asyncio  # noqa: F401  as well, by httpcore
import structlog

from hermes.config import Settings
from hermes.container import Report
from hermes.events import ALL
from hermes.outputs.alerts import Alerts, goes_to
from hermes.outputs.delivery import Delivery, matcher
from hermes.outputs.making import make_all
from hermes.outputs.past import Addresses
from hermes.outputs.sink import Sink
from hermes.tasks import TaskOwner

with contextlib.suppress(ImportError):
    importlib.import_module("sniffio")
sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]  # where it is not there, httpcore need not look for it again

log = structlog.get_logger(__name__)

THREADS = 4
"""Threads for reading and resolving, besides two an output: one that waits long keeps none from another."""


def unmatched(settings: Settings) -> list[tuple[str, str]]:
    """The patterns for events that match none, each with the name of whose it is."""
    wanted = [(it.name, it.events) for it in (*settings.outputs, *settings.alerts.rules)]
    return [(name, it) for name, patterns in wanted for it in patterns if not any(map(matcher((it,)), ALL))]


class Outputs:
    """The outputs of one sensor: `prepare` while secrets can be read, then `run`."""

    def __init__(self) -> None:
        self._sinks: list[Sink] = []

    def prepare(self, settings: Settings, look_filter: bytes = b"") -> None:
        """Make what needs secrets, certificates or libraries."""
        socket.getaddrinfo("localhost", 0)  # the C library loads what it resolves names with
        for where, pattern in unmatched(settings):
            log.warning("no event has such a name: nothing will come of it", where=where, pattern=pattern)
        self._sinks = make_all(settings, os.environ)

    async def run(self, settings: Settings, report: Report) -> None:
        """Send on what the journal holds, and what is added to it, until cancelled."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS + 2 * len(self._sinks), thread_name_prefix="hermes-outputs"))
        async with TaskOwner("outputs") as tasks:
            for config, sink in zip(settings.outputs, self._sinks, strict=True):
                delivery = Delivery(
                    config, sink, journal=settings.journal_path, cursors_dir=settings.outputs_dir,
                    alerts=Alerts(
                        [it for it in settings.alerts.all if goes_to(it, config.name)], Addresses(settings.journal_path)
                    ),
                )  # fmt: skip
                tasks.spawn(delivery.run(), name=config.name)
            report("ready")
            await asyncio.Event().wait()
