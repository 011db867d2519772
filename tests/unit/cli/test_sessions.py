import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from hermes import events
from hermes.cli.sessions import SHOWN_LINES, _table, app
from hermes.config import Settings
from hermes.store import Journal, JournalReader, Session
from tests.unit.store.facts import fact, login, logout, write

Run = Callable[..., Result]
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `hermes sessions …` on the data directory that is this test's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_DATA_DIR", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = Settings(data_dir=tmp_path).journal_path
    path.parent.mkdir()
    return path


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _session(**changes: Any) -> Session:
    known: dict[str, Any] = {
        "session_id": "0123456789abcdef", "connection_id": "c", "sensor": "s1", "username": "0123456789abcdefgh",
        "source_ip": "2001:db8:1111:2222:3333:4444:5555:6666", "source_port": 1, "client_version": "x", "started": NOW,
        "ended": NOW + timedelta(seconds=3), "cause": "client", "container_id": None, "engine": None, "image": None,
        "channels": 1, "commands": [], "command_count": 0, "bytes_in": 0, "bytes_out": 0,
    }  # fmt: skip
    return Session(**(known | changes))


def ids(result: Result) -> list[str]:
    return [session["session_id"] for session in parsed(result)]


def test_list_as_json_has_what_others_build_on(run: Run, journal: Path) -> None:
    write(journal, *login("one"), *logout("one"))
    (session,) = parsed(run("list", "--json"))
    assert (session["session_id"], session["username"], session["source_ip"]) == ("one", "root", "192.0.2.7")
    assert (session["source_port"], session["channels"], session["commands"]) == (4001, 1, ["uname -a"])
    for moment in (session["started"], session["ended"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", moment)


def test_an_active_session_has_no_end(run: Run, journal: Path) -> None:
    sensor = Journal(journal, sensor="s1")
    sensor.open()
    for one in (*login("over"), *logout("over"), *login("on")):
        sensor.emit(one)
    with JournalReader(journal) as reader:
        while len(reader.list_sessions(active=True)) != 1:
            pass
    assert [(each["session_id"], each["ended"] is None) for each in parsed(run("list", "--json"))] == [
        ("on", True),
        ("over", False),
    ]
    assert ids(run("list", "--json", "--active")) == ["on"]
    assert ids(run("list", "--json", "--ended")) == ["over"]
    assert "active" in run("list").stdout
    assert "active" in run("show", "on").stdout
    sensor.close()


def test_filters_and_pages(run: Run, journal: Path) -> None:
    write(journal, *login("a"), *login("b", username="admin"), *login("c", source_ip="2001:db8::1"))
    assert ids(run("list", "--json")) == ["c", "b", "a"]
    assert ids(run("list", "--json", "--limit", "1")) == ["c"]
    assert ids(run("list", "--json", "--limit", "1", "--offset", "2")) == ["a"]
    assert ids(run("list", "--json", "--user", "admin")) == ["b"]
    assert ids(run("list", "--json", "--ip", "2001:db8::1")) == ["c"]
    assert ids(run("list", "--json", "--since", "1h")) == ["c", "b", "a"]
    assert ids(run("list", "--json", "--since", "0001-01-01T00:00+14:00")) == ["c", "b", "a"]
    assert ids(run("list", "--json", "--since", "2999-01-01")) == []
    assert "--offset 2" in run("list", "--limit", "2").stdout
    assert "--offset" not in run("list", "--limit", "4").stdout


def test_an_empty_journal(run: Run, journal: Path) -> None:
    write(journal, fact(1))
    assert parsed(run("list", "--json")) == []
    assert run("list").stdout == "No sessions.\n"


def test_the_table(run: Run, journal: Path) -> None:
    more = [events.ChannelInput(session_id="one", channel=0, line=f"echo {number}") for number in range(5)]
    write(journal, *login("one"), *more, *logout("one"))
    out = run("list").stdout
    for text in ("one", "root", "192.0.2.7", "(+3) uname -a; echo 0; echo 1", "0.0 s"):
        assert text in out


def test_the_table_fits_the_terminal() -> None:
    session = _session(commands=["x" * 300], command_count=1)
    lines = list(_table([session], 150))
    assert max(map(len, lines)) == 150
    assert lines[1].endswith("x…")
    for text in ("0123456789ab", "2026-01-31 12:00", "3.0 s", "0123456789abcdef", "2001:db8:1111:2222:3333:4444:5555:6666"):
        assert text in lines[1]
    assert lines[0].split() == ["SESSION", "STARTED", "(UTC)", "LASTED", "USER", "FROM", "CH", "COMMANDS"]


def test_wide_characters_keep_the_columns_straight() -> None:
    wide, narrow = _session(username="用户"), _session(username="user")
    header, *lines = _table([wide, narrow], 100)
    assert {cell_len(line[: line.index("2001:")]) for line in lines} == {header.index("FROM")}


def test_show_tells_everything(run: Run, journal: Path, tmp_path: Path) -> None:
    both: dict[str, Any] = {"session_id": "one", "connection_id": "c-one"}
    write(
        journal,
        *login("one"),
        events.ChannelOpened(channel=1, **both),
        events.ChannelPty(channel=1, term="xterm-256color", width=120, height=40, **both),
        events.ChannelStarted(channel=1, kind="shell", recording="r/1.cast", **both),
        events.ChannelInput(channel=1, line="wget http://x/y", **both),
        events.ChannelClosed(channel=1, exit_signal="HUP", duration=61.0, bytes_in=1500, bytes_out=2_000_000, **both),
        events.ChannelFailed(channel=2, reason="no such subsystem", **both),
        events.ForwardRequested(kind="direct-tcpip", host="smtp.example", port=25, accepted=True, **both),
        *logout("one"),
    )
    out = run("show", "on").stdout
    for text in (
        "Session one", "root", "192.0.2.7 port 4001", "SSH-2.0-Go", "cause      client", "box1 (local, debian-12, waited 3 ms)",
        "password wrong  refused (denied)", "password root  accepted (password)", "Channel 0: exec uname -a",
        f"recording  {tmp_path}/recordings/r/0.cast", "exit status 0", "Channel 1: shell on xterm-256color 120x40",
        f"recording  {tmp_path}/recordings/r/1.cast", "wget http://x/y", "signal HUP", "for 1 min 01 s", "1.5 kB in, 2.0 MB out",
        "Channel 2: nothing started", "no such subsystem", "forward.requested", "host=smtp.example", "port=25",
    ):  # fmt: skip
        assert text in out, text


def test_show_as_json_has_every_event(run: Run, journal: Path, tmp_path: Path) -> None:
    write(journal, *login("one"), *logout("one"))
    told = parsed(run("show", "one", "--json"))
    assert [event["event"] for event in told["events"]] == [one.tag() for one in (*login("one"), *logout("one"))]
    assert [(each["password"], each["accepted"]) for each in told["authentication"]] == [("wrong", False), ("root", True)]
    (channel,) = told["channel_list"]
    assert channel["recording_path"] == f"{tmp_path}/recordings/r/0.cast"
    assert (channel["exit_status"], channel["kind"], channel["command"]) == (0, "exec", "uname -a")
    assert (told["waited"], told["cause"], told["commands"]) == (0.003, "client", ["uname -a"])


HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07", "\x9b31m", "[red]x[/red]", "[link=http://x]y[/link]", "[/", "a\r\nb", "\u202egpj.exe", "\u2028",
    "x" * 100_000, "\x7f\x08\x08", "\U000e0041", ":boom:", "\\x1b", "\udc9b",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_an_attacker_sent_moves_the_terminal(run: Run, journal: Path, text: str) -> None:
    both: dict[str, Any] = {"session_id": "one", "connection_id": "c-one"}
    write(
        journal,
        *login("one", username=text, source_ip=text, command=text),
        events.AuthAttempt(
            method="publickey", username=text, accepted=False, rule="denied", key_type=text, key_fingerprint=text,
            responses=[text], connection_id="c-one",
        ),
        events.ChannelPty(channel=0, term=text, width=1, height=1, **both),
        events.ChannelInput(channel=0, line=text, **both),
        events.ChannelFailed(channel=0, reason=text, **both),
        events.ChannelEnv(channel=0, variable=text, value=text, accepted=False, **both),
        events.ChannelClosed(channel=0, exit_signal=text, duration=1, bytes_in=0, bytes_out=0, **both),
        events.ForwardRequested(kind="direct-tcpip", host=text, path=text, accepted=False, **both),
    )  # fmt: skip
    for arguments in (["list"], ["show", "one"], ["list", "--json"], ["show", "one", "--json"]):
        out = run(*arguments).stdout
        assert out
        assert all(char.isprintable() or char == "\n" for char in out), arguments
        if "--json" in arguments:
            assert out.isascii()
        else:
            assert len(out) < 20_000
    (session,) = parsed(run("list", "--json"))
    kept = text.encode(errors="backslashreplace").decode()
    assert (session["username"], session["commands"]) == (kept, [kept, kept])
    if len(text) < 50 and kept.isprintable():
        assert kept in run("show", "one").stdout


def test_show_is_bounded(run: Run, journal: Path) -> None:
    inputs = [events.ChannelInput(session_id="one", channel=0, line=f"line {number}") for number in range(SHOWN_LINES + 20)]
    write(journal, *login("one"), *inputs)
    out = run("show", "one").stdout
    assert f"line {SHOWN_LINES - 1}\n" in out
    assert f"line {SHOWN_LINES}\n" not in out
    assert "and 20 more" in out
    assert len(parsed(run("show", "one", "--json"))["commands"]) == SHOWN_LINES + 21


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["show", "nobody"], 1, "no session with an id like 'nobody'"),
        (["show", "s"], 1, "several sessions have an id like 's': s1, s2"),
        (["show", "\x1b[2J"], 1, "no session with an id like"),
        (["list", "--since", "yesterday"], 2, "--since yesterday: give a time span such as 90m"),
        (["list", "--limit", "0"], 2, "--limit"),
    ],
)
def test_mistakes_are_said_in_a_line(run: Run, journal: Path, arguments: list[str], code: int, text: str) -> None:
    write(journal, *login("s1"), *login("s2"))
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert text in result.stderr
    assert "\x1b[2J" not in result.stderr
    assert "Traceback" not in result.stderr


def test_no_journal_yet(run: Run) -> None:
    for arguments in (["list"], ["list", "--json"], ["show", "x"]):
        result = run(*arguments)
        assert result.exit_code == 1
        assert re.fullmatch(r"hermes: there is no journal at .*: no Hermes has run with this data directory\n", result.stderr)


def test_replay_is_one_of_the_commands(run: Run) -> None:
    assert re.search(r"replay\s+Play a session", run("--help").stdout)
