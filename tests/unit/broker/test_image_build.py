"""The parts of an image build that need no packages: sources, owners, times, traces. Whole builds: tests/engine/test_image.py."""

import os
import time
from pathlib import Path

import pytest

from hermes.broker import image_build
from hermes.broker.image_definition import Definition, find
from hermes.errors import ImageError

ACCOUNTS = image_build._Accounts({"root": 0, "eva": 1234}, {"root": 0, "adm": 4}, {"/home/eva": (1234, 1234)})


def test_the_host_own_sources_are_used_only_for_its_own_release(monkeypatch: pytest.MonkeyPatch) -> None:
    definition = find("debian-12")
    lines = [
        "http://mirror.test/debian bookworm main",
        "http://mirror.test/debian bookworm non-free",
        "http://mirror.test/sec bookworm-security main",
        "https://deb.nodesource.test/node_20.x nodistro main",
        "http://mirror.test/debian bookworm-backports main",
    ]
    monkeypatch.setattr(image_build, "_ask", lambda argv: lines)
    monkeypatch.setattr(image_build, "_os_release", lambda: {"ID": "debian", "VERSION_CODENAME": "bookworm"})
    assert image_build._sources(definition) == [
        "deb http://mirror.test/debian bookworm main",
        "deb http://mirror.test/sec bookworm-security main",
    ]
    monkeypatch.setattr(image_build, "_os_release", lambda: {"ID": "ubuntu", "VERSION_CODENAME": "noble"})
    sources = image_build._sources(definition)
    assert [line.split("] ")[-1] for line in sources] == [
        "http://deb.debian.org/debian bookworm main",
        "http://deb.debian.org/debian bookworm-updates main",
        "http://deb.debian.org/debian-security bookworm-security main",
    ]
    assert all("signed-by=/usr/share/keyrings/debian-archive-keyring.gpg" in line for line in sources)


@pytest.mark.parametrize("lines", [[], ["http://mirror.test/debian bookworm-updates main"], ["nonsense"]])
def test_a_host_without_the_release_itself_gives_no_sources(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    monkeypatch.setattr(image_build, "_ask", lambda argv: lines)
    monkeypatch.setattr(image_build, "_os_release", lambda: {"ID": "debian", "VERSION_CODENAME": "bookworm"})
    assert image_build._sources(find("debian-12"))[0].endswith("http://deb.debian.org/debian bookworm main")


def test_a_suite_without_security_updates_has_one_line(tmp_path: Path) -> None:
    definition = defined(tmp_path, "suite: sid\nsecurity_mirror: null\ncomponents: [main, contrib]\n")
    assert image_build._mirror_lines(definition) == ["deb http://deb.debian.org/debian sid main contrib"]


def test_the_machine_proxies_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_build, "_ask", lambda argv: ['Acquire::http "";', 'Acquire::http::Proxy "http://proxy.test:3142";'])
    assert image_build._apt_options() == ['Acquire::http::Proxy "http://proxy.test:3142";']


def defined(tmp_path: Path, text: str) -> Definition:
    folder = tmp_path / "definitions" / "web"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image.yaml").write_text(text)
    return find("web", [folder.parent])


def test_files_get_owners_and_modes_by_the_rule_or_as_said(tmp_path: Path) -> None:
    files = tmp_path / "definitions/web/files"
    for name in ("etc/motd", "etc/secret", "home/eva/notes/today", "home/evangeline/x", "usr/bin/tool"):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(name)
        (files / name).chmod(0o600)
    (files / "usr/bin/tool").chmod(0o700)
    (files / "etc/link").symlink_to("/etc/motd")
    text = "suite: bookworm\npermissions:\n  /etc/secret: {owner: eva, group: adm, mode: '0640'}\n  /usr: {mode: '0711'}\n"
    entries = {entry.name: (entry, content) for entry, content in image_build._tree(defined(tmp_path, text), ACCOUNTS)}
    assert {name: (entry.uid, entry.gid, entry.mode) for name, (entry, _) in entries.items() if not entry.issym()} == {
        "etc/motd": (0, 0, 0o644),
        "etc/secret": (1234, 4, 0o640),
        "home/eva/notes": (1234, 1234, 0o755),
        "home/eva/notes/today": (1234, 1234, 0o644),
        "home/evangeline/x": (0, 0, 0o644),
        "usr": (0, 0, 0o711),
        "usr/bin/tool": (0, 0, 0o755),
    }
    assert entries["usr"][0].isdir()
    assert entries["etc/link"][0].linkname == "/etc/motd"
    assert entries["etc/motd"][1] == b"etc/motd"


@pytest.mark.parametrize(
    ("permissions", "said"),
    [("/etc/none: {mode: '0600'}", "not in its tree: /etc/none"), ("/etc/motd: {owner: adam}", "names 'adam'")],
)
def test_permissions_of_what_is_not_there_are_refused(tmp_path: Path, permissions: str, said: str) -> None:
    files = tmp_path / "definitions/web/files/etc"
    files.mkdir(parents=True)
    (files / "motd").write_text("x")
    definition = defined(tmp_path, f"suite: bookworm\npermissions:\n  {permissions}\n")
    with pytest.raises(ImageError, match=said):
        list(image_build._tree(definition, ACCOUNTS))


def test_only_what_the_build_wrote_is_made_older(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("old", 5000.0), ("new", 10.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        (tmp_path / name / "link").symlink_to("nowhere")
        for path in (tmp_path / name / "file", tmp_path / name / "link", tmp_path / name):
            os.utime(path, (now - age, now - age), follow_symlinks=False)
    image_build._age(tmp_path, now - 100, 1000)
    for name, age in (("old", 5000.0), ("new", 1010.0)):
        for path in (tmp_path / name, tmp_path / name / "file", tmp_path / name / "link"):
            assert path.lstat().st_mtime == pytest.approx(now - age, abs=0.01)


def test_traces_go_and_folders_are_emptied_but_not_through_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    root = tmp_path / "root"
    (root / "etc/apt/apt.conf.d").mkdir(parents=True)
    (root / "etc/apt/apt.conf.d/99mmdebstrap").write_text("x")
    (root / "etc/resolv.conf").write_text("nameserver 10.0.0.1\n")
    (root / "etc/kept").write_text("x")
    (root / "etc/apt/sources.list.d").mkdir()
    (root / "etc/apt/sources.list.d/link").symlink_to(outside)
    (root / "run").symlink_to(outside)
    image_build._remove_traces(root)
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()) == ["etc/kept"]
    assert (outside / "precious").exists()


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("I: x\ndpkg: error: No space left on device\n", "the disk is full; free about 1 GB"),
        ("I: x\nE: Unable to locate package y\nE: mmdebstrap failed to run\n", "failed: Unable to locate package y; mmdebstrap"),
        ("\n".join(f"line {number}" for number in range(40)), "failed: line 37; line 38; line 39 "),
    ],
)
def test_why_packages_failed_is_read_from_the_log(tmp_path: Path, log: str, said: str) -> None:
    (tmp_path / "web.log").write_text(log)
    why = image_build._why(defined(tmp_path, "suite: bookworm\n"), tmp_path / "web.log")
    assert said in why
    assert "\n" not in why
