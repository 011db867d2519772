import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.recording import asciicast
from hermes.recording.asciicast import Event, TextStream
from hermes.recording.facts import Facts


def facts(**more: object) -> Facts:
    fields: dict[str, object] = {
        "session_id": "s1",
        "username": "root",
        "source_ip": "192.0.2.7",
        "source_port": 4711,
        "channel": 2,
        "kind": "shell",
        "started_ns": 1_700_000_000_900_000_000,
    }
    return Facts(**(fields | more))  # type: ignore[arg-type]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_header_says_what_players_and_people_need() -> None:
    line = asciicast.encode_header(facts(term="xterm-256color", width=120, height=40))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "version": 2,
        "width": 120,
        "height": 40,
        "timestamp": 1_700_000_000,
        "title": "root@192.0.2.7 channel 2: shell",
        "env": {"TERM": "xterm-256color", "SHELL": "/bin/bash"},
        "hermes": {
            "session_id": "s1",
            "username": "root",
            "source_ip": "192.0.2.7",
            "source_port": 4711,
            "channel": 2,
            "kind": "shell",
            "command": None,
            "pty": True,
        },
    }


def test_header_of_a_command_without_terminal() -> None:
    header = json.loads(asciicast.encode_header(facts(kind="exec", command=b"echo \xff\n\x1b[2J")))
    assert header["command"] == header["hermes"]["command"] == "echo \\xff\n\x1b[2J"
    assert header["hermes"]["pty"] is False
    assert "TERM" not in header["env"]
    assert (header["width"], header["height"]) == (80, 24)


@pytest.mark.parametrize(("stated", "shown"), [(0, 80), (-5, 80), (1, 1), (1000, 1000), (2**32 - 1, 1000)])
def test_sizes_stay_within_what_a_player_can_show(stated: int, shown: int) -> None:
    assert json.loads(asciicast.encode_header(facts(width=stated)))["width"] == shown
    assert json.loads(asciicast.encode_resize(1.0, stated, 30)) == [1.0, "r", f"{shown}x30"]


@given(
    st.floats(min_value=0, max_value=1e9),
    st.sampled_from("oirm"),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_an_event_is_one_line_of_json(time: float, code: str, text: str) -> None:
    line = asciicast.encode_event(time, code, text)
    assert line.index(b"\n") == len(line) - 1
    assert json.loads(line) == [pytest.approx(time, abs=1e-6), code, text]
    assert list(asciicast.decode_events([line])) == [Event(json.loads(line)[0], code, text)]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(min_value=0)))
def test_text_comes_out_whole_however_it_is_cut(text: str, places: list[int]) -> None:
    stream = TextStream()
    assert "".join(stream.feed(piece) for piece in cut(text.encode(), places)) + stream.finish() == text


@given(st.binary(), st.lists(st.integers(min_value=0)))
def test_bytes_become_the_same_text_however_they_are_cut(data: bytes, places: list[int]) -> None:
    stream = TextStream()
    assert "".join(stream.feed(piece) for piece in cut(data, places)) + stream.finish() == data.decode(errors="replace")
    assert stream.finish() == ""


def test_a_split_character_waits_for_its_rest() -> None:
    stream = TextStream()
    assert [stream.feed(b"caf\xc3"), stream.feed(b"\xa9"), stream.feed(b"\xf0\x9f\x92"), stream.finish()] == [
        "caf",
        "é",
        "",
        "\ufffd",
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b'[1.0,"o","torn',
        b'[1.0,"o","no newline"]',
        b'{"version":2}\n',
        b'[1.0,"o"]\n',
        b'[1.0,"o","x","y"]\n',
        b'["1.0","o","x"]\n',
        b'[1.0,"o",null]\n',
        b'[NaN,"o","x"]\n',
        b'[1e999,"o","x"]\n',
        b'[1.0,"o","\xff"]\n',
        b'[1.0,"o","\\ud800"]\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_line_that_is_no_event_is_passed_over(line: bytes) -> None:
    good = asciicast.encode_event(2.0, "o", "still here")
    assert list(asciicast.decode_events([line, good])) == [Event(2.0, "o", "still here")]
    assert asciicast.decode_header(line) is None


def test_overlong_lines_are_passed_over() -> None:
    line = asciicast.encode_event(1.0, "o", "x" * asciicast.MAX_LINE)
    assert list(asciicast.decode_events([line])) == []


def test_time_does_not_run_backwards() -> None:
    lines = [b'[5,"o","a"]\n', b'[-1,"o","b"]\n', b'[7.5,"o","c"]\n']
    assert [event.time for event in asciicast.decode_events(lines)] == [5.0, 5.0, 7.5]


@given(st.lists(st.binary() | st.from_regex(re.compile(rb"\[[0-9.e+-]{1,400},\"[a-z]\",\"[^\"]*\"\]\n"))))
def test_no_line_makes_the_decoder_raise(lines: list[bytes]) -> None:
    for event in asciicast.decode_events(lines):
        assert event.time >= 0
    for line in lines:
        asciicast.decode_header(line)


def test_header_comes_back() -> None:
    header = asciicast.decode_header(asciicast.encode_header(facts(term="vt100")))
    assert header is not None
    assert header.hermes["session_id"] == "s1"
    assert header.env["TERM"] == "vt100"
    assert asciicast.decode_header(b'{"version":3,"width":80,"height":24}\n') is None
