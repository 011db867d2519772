"""Where events go besides the journal."""

import asyncio

from hermes.config import Settings
from hermes.container import Report
from hermes.store.follow import Follower


async def run(settings: Settings, report: Report) -> None:
    """Follow the journal until cancelled."""
    follower = Follower(settings.journal_path)
    report("ready")
    while True:
        await follower.next()
        await asyncio.sleep(0)
