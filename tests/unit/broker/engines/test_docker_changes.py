"""Archives as an attacker would want them, unpacked."""

import io
import json
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from hermes.broker.engines.docker_changes import Tree, wanted


def archive(*members: tuple[str, bytes | str, bytes]) -> io.BytesIO:
    """A tar of (name, content or link target, type)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.mode = 0o6755
            if isinstance(content, str):
                member.linkname = content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    out.seek(0)
    return out


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root = tmp_path / "kept" / "changes"
    root.mkdir(parents=True)
    return Tree(root, io.BytesIO(), 1000)


def noted(tree: Tree) -> dict[str, dict[str, Any]]:
    """The manifest, by path."""
    assert isinstance(tree._manifest, io.BytesIO)
    return {line["path"]: line for line in map(json.loads, tree._manifest.getvalue().splitlines())}


def test_files_directories_and_links_arrive(tree: Tree) -> None:
    members = archive(
        ("dir", b"", tarfile.DIRTYPE), ("dir/file", b"evil", tarfile.REGTYPE), ("dir/hard", "dir/file", tarfile.LNKTYPE),
        ("dir/soft", "/etc/shadow", tarfile.SYMTYPE), ("dir/fifo", b"", tarfile.FIFOTYPE),
    )  # fmt: skip
    tree.modified = {"root/dir/file"}
    tree.unpack(members, PurePosixPath("/root"))
    tree.link()
    there = tree.root / "root/dir"
    assert (there / "file").read_bytes() == b"evil"
    assert (there / "hard").read_bytes() == b"evil"
    assert os.readlink(there / "soft") == "/etc/shadow"  # noqa: PTH115
    assert not (there / "fifo").exists()
    assert (there / "file").stat().st_mode & 0o7777 == 0o600
    entries = noted(tree)
    assert (entries["root/dir/fifo"]["kind"], entries["root/dir/file"]["mode"]) == ("fifo", "6755")
    assert entries["root/dir/soft"]["target"] == "/etc/shadow"
    assert {path for path, entry in entries.items() if entry["change"] == "changed"} == {"root/dir/file"}
    assert {entry["change"] for entry in entries.values()} == {"added", "changed"}


def test_entries_are_bounded(tmp_path: Path) -> None:
    tree = Tree(tmp_path, io.BytesIO(), 3)
    tree.unpack(archive(*((str(n), b"x", tarfile.REGTYPE) for n in range(10))), PurePosixPath("/"))
    assert tree.entries == len(list(tmp_path.iterdir())) == len(noted(tree)) == 3
    tree.note(b"more", kind="deleted")
    assert len(noted(tree)) == 3


@pytest.mark.parametrize("name", ["../out", "/../out", "a/../../../out", "../../kept/../out", "/", ".", "..", ""])
def test_nothing_is_written_outside(tree: Tree, tmp_path: Path, name: str) -> None:
    tree.unpack(archive((name, b"evil", tarfile.REGTYPE)), PurePosixPath("/"))
    tree.link()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and tree.root not in path.parents] == []


def test_nothing_is_written_through_a_link(tree: Tree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    first = archive(("way", str(outside), tarfile.SYMTYPE), ("way/evil", b"evil", tarfile.REGTYPE))
    second = archive(
        ("way/later", b"evil", tarfile.REGTYPE),
        ("file", str(outside / "new"), tarfile.SYMTYPE),
        ("file", b"evil", tarfile.REGTYPE),
    )
    tree.unpack(first, PurePosixPath("/"))
    tree.unpack(second, PurePosixPath("/"))
    tree.link()
    assert list(outside.iterdir()) == []


def test_no_file_of_ours_is_linked(tree: Tree, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("ours")
    for target in (str(secret), "../../secret", "../secret"):
        tree.unpack(archive(("stolen", target, tarfile.LNKTYPE)), PurePosixPath("/"))
    assert not (tree.root / "stolen").exists()
    assert secret.stat().st_nlink == 1


def test_devices_are_not_made(tree: Tree) -> None:
    tree.unpack(
        archive(("disk", b"", tarfile.BLKTYPE), ("mem", b"", tarfile.CHRTYPE), ("after", b"x", tarfile.REGTYPE)),
        PurePosixPath("/dev"),
    )
    assert [path.name for path in (tree.root / "dev").iterdir()] == ["after"]


def test_a_cut_archive_gives_what_it_has(tree: Tree) -> None:
    whole = archive(("first", b"x" * 2000, tarfile.REGTYPE), ("second", b"y" * 50_000, tarfile.REGTYPE)).getvalue()
    tree.unpack(io.BytesIO(whole[:9000]), PurePosixPath("/"))
    assert (tree.root / "first").read_bytes() == b"x" * 2000
    tree.unpack(io.BytesIO(b"garbage" * 1000), PurePosixPath("/"))
    tree.unpack(io.BytesIO(b""), PurePosixPath("/"))


def test_names_too_long_are_passed_over(tree: Tree) -> None:
    deep = "/".join(["d" * 200] * 60)
    tree.unpack(archive((deep, b"x", tarfile.REGTYPE), ("after", b"x", tarfile.REGTYPE)), PurePosixPath("/"))
    assert (tree.root / "after").exists()


def test_what_is_fetched_of_dockers_list() -> None:
    changes = [
        {"Path": "/root", "Kind": 0}, {"Path": "/root/new", "Kind": 1}, {"Path": "/root/new/file", "Kind": 1},
        {"Path": "/etc", "Kind": 0}, {"Path": "/etc/passwd", "Kind": 0},
        {"Path": "/usr", "Kind": 0}, {"Path": "/etc/gone", "Kind": 2},
    ]  # fmt: skip
    assert list(wanted(changes)) == [("/root/new", True), ("/etc/passwd", False), ("/usr", False)]
