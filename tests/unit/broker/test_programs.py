"""Programs are found whatever PATH root happens to have."""

from pathlib import Path

import pytest

from hermes.broker import programs


def _program(directory: Path) -> str:
    directory.mkdir()
    program = directory / "runc"
    program.touch(mode=0o755)
    return str(program)


def test_the_systems_directories_are_searched_after_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = _program(tmp_path / "bin"), _program(tmp_path / "sbin")
    monkeypatch.setattr(programs, "SYSTEM_PATH", f"{tmp_path}/sbin")
    monkeypatch.setenv("PATH", "/nowhere")
    assert programs.which("runc") == theirs
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    assert programs.which("runc") == mine
    assert programs.which("crun") is None
    monkeypatch.delenv("PATH")
    assert programs.which("runc") == theirs


def test_sbin_is_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert {"/usr/sbin", "/sbin"} <= set(programs.SYSTEM_PATH.split(":"))
    assert programs.which("sh") in ("/usr/bin/sh", "/bin/sh")
