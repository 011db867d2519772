"""A data directory as a sensor leaves it: a journal, and what the analyst made of it."""

from pathlib import Path

from hermes.analysis import rules_match
from hermes.analysis.campaigns import Campaigns
from hermes.analysis.techniques import Techniques
from hermes.analysis.work import Analyst, stages
from hermes.config import Settings
from hermes.events import Event
from tests.unit.analysis.test_scans import FakeScanner, scans
from tests.unit.store.facts import write

RULES = rules_match.load(None)


def left_by(directory: Path, *facts: Event) -> Settings:
    """Let a sensor state these facts, and an analyst take them; the settings to find them with."""
    settings = Settings(data_dir=directory)
    for path in (settings.journal_dir, settings.index_dir):
        path.mkdir(exist_ok=True)
    write(settings.journal_path, *facts)
    techniques, campaigns = Techniques(RULES), Campaigns()
    looked = scans(FakeScanner(), directory, techniques.scanned, campaigns.scanned)
    analyst = Analyst(settings, [*stages(settings), looked, techniques, campaigns])
    analyst.open()
    while not analyst.step():
        pass
    analyst.close()
    return settings
