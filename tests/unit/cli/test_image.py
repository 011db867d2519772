"""`hermes image`: what it prints and how it ends; building itself is tested with real packages in tests/engine."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from hermes.broker import image
from hermes.broker.image import Manifest, Stored
from hermes.broker.image_definition import Definition
from hermes.cli import app
from hermes.errors import ImageError

MANIFEST = Manifest(
    name="web", digest="a" * 64, suite="bookworm", built=datetime(2026, 1, 2, tzinfo=UTC), size=300 << 20, packages={"curl": "8"}
)
STORED = [
    Stored("mail", "a mail\x1b[2J host", "b" * 64, None, current=True),
    Stored("web", "a web server", "a" * 64, MANIFEST, current=True),
    Stored("web", "", "c" * 64, MANIFEST, current=False),
]


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images are listed."""
    monkeypatch.setattr(image, "list_images", lambda data_dir: STORED)


@pytest.mark.usefixtures("stored")
def test_list_tells_built_from_not_built_and_out_of_date() -> None:
    done = CliRunner().invoke(app, ["image", "list"])
    assert done.exit_code == 0
    mail, web, old = done.stdout.splitlines()
    assert mail.split()[:3] == ["mail", "not", "built"]
    assert "a mail\\x1b[2J host" in mail
    assert "built (300 MB, 2026-01-0" in web
    assert "out of date (300 MB" in old


@pytest.mark.usefixtures("stored")
def test_list_as_json() -> None:
    done = CliRunner().invoke(app, ["image", "list", "--json"])
    mail, web, old = json.loads(done.stdout)
    assert (mail["name"], mail["built"], mail["packages"], mail["current"]) == ("mail", None, None, True)
    assert (web["built"], web["size"], web["packages"]) == ("2026-01-02T00:00:00+00:00", 300 << 20, {"curl": "8"})
    assert old["current"] is False


def test_build_shows_each_step_and_passes_force_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, Path, bool]] = []

    def build(definition: Definition, data_dir: Path, progress: Callable[[str], None], *, force: bool) -> SimpleNamespace:
        asked.append((definition.name, data_dir, force))
        progress("laying\x1b[2J files")
        return SimpleNamespace(name=definition.name, rootfs=data_dir / "images/x/rootfs")

    monkeypatch.setattr(image, "build", build)
    for options in ([], ["debian-12", "--force"]):
        done = CliRunner().invoke(app, ["image", "build", *options, "--set", f"data_dir={tmp_path}"])
        assert done.exit_code == 0
        assert done.stdout == f"laying\\x1b[2J files\ndebian-12 is ready: {tmp_path}/images/x\n"
    assert asked == [("debian-12", tmp_path, False), ("debian-12", tmp_path, True)]


def test_a_build_that_fails_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: object, **more: object) -> None:
        raise ImageError("the disk is full")

    monkeypatch.setattr(image, "build", build)
    done = CliRunner().invoke(app, ["image", "build"])
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "hermes: the disk is full\n")
    unknown = CliRunner().invoke(app, ["image", "build", "nosuch"])
    assert unknown.exit_code == 1
    assert "known are: debian-12" in unknown.stderr
