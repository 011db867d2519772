from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hermes.evidence import recordings
from hermes.evidence.recordings import Recordings
from hermes.evidence.shelves import Shelves
from hermes.store.pruning import SessionRow
from tests.unit.evidence.test_shelves import on_disk, record

NOW = datetime(2026, 1, 20, 12, tzinfo=UTC).timestamp()
DAY = 86400.0


class Journal:
    """What the journal knows; a session whose id begins with `i` was idle."""

    def __init__(self) -> None:
        self.asked = 0
        self.readable = True

    def known(self, session_ids: list[str]) -> dict[str, SessionRow] | None:
        self.asked += len(session_ids)
        if not self.readable:
            return None
        return {each: SessionRow(1, each, 0, 0 if each[0] == "i" else 3, 0, 100, False) for each in session_ids}


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def shelf(tmp_path: Path, journal: Journal) -> Recordings:
    return Recordings(Shelves(tmp_path), journal.known)


def taken(shelf: Recordings, need: int, active: frozenset[str] = frozenset(), **options: float) -> list[str]:
    return [each.item.path for each in shelf.take(need, "evidence.max_bytes", now=NOW, active=active, **options)]


def test_idle_sessions_go_before_older_ones_in_which_something_was_done_and_the_oldest_first(
    tmp_path: Path, shelf: Recordings
) -> None:
    for day in ("2026-01-20", "2026-01-10"):
        for name in ("acted2", "acted1", "idle2", "idle1"):
            record(tmp_path, day, name)
    shelf.survey(frozenset())
    assert shelf.total == sum(on_disk(place) for place in tmp_path.glob("*/*"))
    assert taken(shelf, 1 << 40) == [
        f"2026-01-{day}/{what}{number}" for what in ("idle", "acted") for day in (10, 20) for number in (1, 2)
    ]
    assert shelf.total == 0
    assert taken(shelf, 1) == []


def test_no_more_goes_than_is_needed(tmp_path: Path, shelf: Recordings) -> None:
    places = [record(tmp_path, "2026-01-10", f"s{number}") for number in range(10)]
    shelf.survey(frozenset())
    before = shelf.total
    assert len(taken(shelf, 1)) == 1
    assert len(taken(shelf, on_disk(places[5]) + 1)) == 2
    assert shelf.total == before - 3 * on_disk(places[9])


def test_what_is_under_way_never_goes_and_is_counted(tmp_path: Path, shelf: Recordings) -> None:
    record(tmp_path, "2026-01-10", "idle-active")
    place = record(tmp_path, "2026-01-10", "active")
    record(tmp_path, "2026-01-10", "over")
    active = frozenset({"active", "idle-active"})
    shelf.survey(active)
    assert taken(shelf, 1 << 40, active) == ["2026-01-10/over"]
    assert shelf.total == 2 * on_disk(place)
    shelf.survey(frozenset())
    assert len(taken(shelf, 1 << 40)) == 2


def test_by_age_goes_only_what_is_of_a_day_that_was_over(tmp_path: Path, shelf: Recordings) -> None:
    for day in (1, 9, 10, 11, 19, 20):
        record(tmp_path, f"2026-01-{day:02}", "acted")
    record(tmp_path, "9999-99-99", "of no day")
    shelf.survey(frozenset())
    assert taken(shelf, 1 << 40, older_than=10 * DAY) == ["2026-01-01/acted", "2026-01-09/acted"]


def test_what_somebody_did_lately_can_be_spared(tmp_path: Path, shelf: Recordings) -> None:
    for day in (17, 18, 19, 20):
        record(tmp_path, f"2026-01-{day}", "acted")
        record(tmp_path, f"2026-01-{day}", "idle")
    shelf.survey(frozenset())
    assert set(taken(shelf, 1 << 40, spare=DAY)) == {
        "2026-01-17/acted", "2026-01-18/acted", *(f"2026-01-{day}/idle" for day in (17, 18, 19, 20)),
    }  # fmt: skip


def test_only_days_that_changed_are_looked_at_again(tmp_path: Path, shelf: Recordings, journal: Journal) -> None:
    for day in range(1, 11):
        record(tmp_path, f"2026-01-{day:02}", "s")
    shelf.survey(frozenset())
    assert journal.asked == 10
    shelf.survey(frozenset())
    assert journal.asked == 11, "the newest grows"
    record(tmp_path, "2026-01-03", "late")
    shelf.survey(frozenset())
    assert journal.asked == 11 + 3


def test_a_journal_that_cannot_be_read_makes_everything_precious_until_it_can(
    tmp_path: Path, shelf: Recordings, journal: Journal
) -> None:
    record(tmp_path, "2026-01-10", "idle")
    journal.readable = False
    shelf.survey(frozenset())
    assert taken(shelf, 1 << 40, spare=30 * DAY) == []


def test_what_cannot_be_removed_is_said_once_and_holds_nothing_up(
    tmp_path: Path, shelf: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path, "2026-01-10", "stuck")
    record(tmp_path, "2026-01-11", "fine")
    real = Shelves.take

    def refuses(self: Shelves, item: object, reason: str) -> object:
        if "stuck" in str(item):
            raise PermissionError(1, "Operation not permitted")
        return real(self, item, reason)  # type: ignore[arg-type]

    monkeypatch.setattr(Shelves, "take", refuses)
    with capture_logs() as logs:
        for _ in range(3):
            shelf.survey(frozenset())
            taken(shelf, 1 << 40)
    assert not (tmp_path / "2026-01-11" / "fine").exists()
    assert [entry["recording"] for entry in logs] == ["2026-01-10/stuck"]


def test_a_day_with_very_many_sessions_is_taken_in_batches(
    tmp_path: Path, shelf: Recordings, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "BATCH", 10)
    for number in range(95):
        record(tmp_path, "2026-01-10", f"s{number:03}", size=1)
    shelf.survey(frozenset())
    asked = journal.asked
    batches = []
    while batch := taken(shelf, 1 << 40):
        batches.append(len(batch))
    assert batches == [10] * 9 + [5]
    assert journal.asked == asked + 95, "the day is read once, not once a batch"
