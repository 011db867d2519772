from collections import Counter
from itertools import islice
from pathlib import Path

from bench.attackers import Attackers, write

from hermes.store.follow import Follower


def told(seed: int, connections: int) -> list[object]:
    attackers = Attackers(seed)
    return [fact for _ in range(connections) for fact in attackers.connection()]


def test_they_are_the_same_for_the_same_seed() -> None:
    assert told(1, 50) == told(1, 50) != told(2, 50)


def test_most_only_try_and_some_act() -> None:
    names = Counter(type(fact).__name__ for fact in told(1, 2000))
    assert names["ConnectionOpened"] == names["ConnectionClosed"] == 2000
    assert 1500 < names["AuthAttempt"] < 1700
    assert 500 < names["SessionOpened"] < 700
    assert names["SessionContainer"] < names["SessionOpened"]
    assert names["ChannelStarted"] > 500


def test_a_journal_of_them_is_one_that_can_be_followed(tmp_path: Path) -> None:
    write(tmp_path / "journal.db", Attackers(1, tmp_path / "recordings", 3), 300)
    found = Follower(tmp_path / "journal.db").read(1000)
    assert len(found) >= 300
    assert [it.id for it in found] == list(range(1, len(found) + 1))
    assert all(it.fact() is not None for it in found)
    recordings = [it.body["recording"] for it in found if it.event == "channel.started" and it.body["recording"]]
    assert len(recordings) == 3
    assert all((tmp_path / "recordings" / it).exists() for it in islice(recordings, 3))
