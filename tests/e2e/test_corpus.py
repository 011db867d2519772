"""What real attackers sent, played again: each input is found, each process accounted for, each file known by its content."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus.play import scripts
from tests.corpus.run import SETTINGS, run
from tests.sensors import Start

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

CORPUS = Path(__file__).parents[1] / "corpus" / "sessions.jsonl"


@pytest.fixture
def clients() -> Iterator[Path]:
    """A directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        yield Path(place)


def test_nothing_of_what_attackers_did_is_missing(start: Start, clients: Path) -> None:
    report = run(start(**SETTINGS), scripts(CORPUS), clients, told=print)
    text = "\n".join(report.lines())
    print(text)
    assert report.holds, text
    assert report.sessions == 12
    assert min(report.inputs, report.processes, report.files) > 12
