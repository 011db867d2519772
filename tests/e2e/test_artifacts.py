"""Whatever an attacker brings, makes, runs and leaves is found by its hash, and can be taken out of the sensor."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import pyzipper

from tests.sensors import Sensor, Start, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MEMFD = """
import os
memory = os.memfd_create("loader")
with open("/bin/true", "rb") as file:
    os.write(memory, file.read() + b"packed")
os.execve(memory, ["x"], {})
"""
PIPED = b"echo piped; echo '# %d'\n" % os.getpid()
DROPPED = b"dropped\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module", params=["local", "docker"])
def sensor(request: pytest.FixtureRequest, start: Start) -> Sensor:
    """A sensor of each engine."""
    if request.param == "docker":
        host = request.getfixturevalue("docker_host")
        return start(container_pool__engine="docker", container_pool__docker__host=host)
    return start()


@pytest.fixture(scope="module")
def told(sensor: Sensor) -> list[dict[str, Any]]:
    """All events of a session that did everything, once its end is told."""
    assert sensor.ssh("sh", stdin=PIPED).stdout.startswith(b"piped\n")
    script = (
        "printf 'dropped\\n' >/tmp/a; rm /tmp/a; cp /bin/true /tmp/b; printf x >>/tmp/b; /tmp/b; "
        "chmod 4755 /usr/bin/id; rm /etc/motd"
    )
    assert sensor.ssh(f"{script}; python3 -; true", stdin=MEMFD.encode()).returncode == 0

    def ended() -> list[dict[str, Any]] | None:
        found: list[dict[str, Any]] = []
        for session in sensor.json("sessions", "list"):
            found += [
                it["body"] | {"session": session["session_id"]}
                for it in sensor.json("sessions", "show", session["session_id"])["events"]
            ]
        paths = {it["path"] for it in found if it["event"] == "file.changed"}
        return found if {"/tmp/b", "/usr/bin/id"} <= paths else None

    found: list[dict[str, Any]] = wait_until(ended)
    return found


def of(told: list[dict[str, Any]], kind: str, **fields: Any) -> list[dict[str, Any]]:
    return [it for it in told if it["event"] == kind and all(it[name] == value for name, value in fields.items())]


def test_what_is_unlinked_at_once_is_kept(sensor: Sensor, told: list[dict[str, Any]]) -> None:
    (written,) = of(told, "file.written", path="/tmp/a")
    assert (written["sha256"], written["channel"], written["size"]) == (sha256(DROPPED), 1, len(DROPPED))
    place = sensor.data_dir / "artifacts" / written["sha256"][:2] / written["sha256"][2:4] / written["sha256"]
    assert place.read_bytes() == DROPPED
    assert (place.stat().st_uid, place.stat().st_mode & 0o7777) == (0, 0o640)


def test_what_is_executed_is_kept(told: list[dict[str, Any]]) -> None:
    content = {path: of(told, "file.executed", path=path) for path in ("/tmp/b", "/memfd:loader")}
    assert {path: len(found) for path, found in content.items()} == {"/tmp/b": 1, "/memfd:loader": 1}
    (memfd,) = content["/memfd:loader"]
    assert memfd["deleted"]
    assert of(told, "artifact.stored", sha256=memfd["sha256"], source="executed")


def test_a_script_that_is_piped_in_is_known_by_its_hash(told: list[dict[str, Any]]) -> None:
    assert [it["path"] for it in of(told, "file.written", sha256=sha256(PIPED))] == [""]


def test_the_end_difference_is_told_before_the_session_is_complete(told: list[dict[str, Any]]) -> None:
    changes = {it["path"]: (it["change"], it["kind"]) for it in of(told, "file.changed")}
    assert changes["/tmp/b"] == ("added", "file")
    assert changes["/usr/bin/id"] == ("changed", "file")
    assert changes["/etc/motd"] == ("deleted", "")
    assert "/etc/hosts" not in changes
    (suid,) = of(told, "file.changed", path="/usr/bin/id")
    assert suid["mode"] == 0o4755
    assert "/tmp/a" not in changes


def test_each_content_is_stated_once_a_session(told: list[dict[str, Any]]) -> None:
    stated = [(it["session"], it["sha256"]) for it in of(told, "artifact.stored") if it["source"] != "input"]
    assert sorted(stated) == sorted(set(stated))


@pytest.mark.parametrize("content", [DROPPED, PIPED], ids=["dropped", "piped"])
def test_it_is_listed_and_exported(sensor: Sensor, told: list[dict[str, Any]], tmp_path: Path, content: bytes) -> None:
    name = sha256(content)
    (listed,) = [it for it in sensor.json("artifacts", "list") if it["sha256"] == name]
    assert listed["size"] == len(content)
    done = sensor.hermes("artifacts", "export", name[:12], "-o", str(tmp_path / "x.zip"))
    assert done.returncode == 0, done.stderr
    with pyzipper.AESZipFile(tmp_path / "x.zip") as archive:
        assert archive.read(name, pwd=b"infected") == content


def test_deleting_everything_hides_nothing(sensor: Sensor) -> None:
    sensor.ssh("echo evidence >/root/kept; rm -rf --no-preserve-root / 2>/dev/null")
    newest = sensor.json("sessions", "list")[0]["session_id"]

    def sealed() -> list[dict[str, Any]] | None:
        found = [it["body"] for it in sensor.json("sessions", "show", newest)["events"]]
        return found if any(it["event"] == "session.sealed" for it in found) else None

    found: list[dict[str, Any]] = wait_until(sealed)
    assert [it["sha256"] for it in of(found, "file.written", path="/root/kept")] == [sha256(b"evidence\n")]
    assert {"/usr", "/root", "/etc"} & {it["path"] for it in of(found, "file.changed", change="deleted")} or of(
        found, "file.changed", path="/usr/bin/id", change="deleted"
    )
