"""Users looked up and made in a box's files, whatever those have become."""

import os
from pathlib import Path

import pytest

from hermes.broker import accounts
from hermes.broker.accounts import Account, UnknownUser, find, parse_groups, parse_passwd, read_regular

PASSWD = b"""\
root:x:0:0:root:/root:/bin/bash
short:x:1:1
bad:x:one:1::/:/bin/sh
huge:x:99999999999:1::/:/bin/sh
bare:x:7:8:::
alice:x:1000:1000:Alice,,,:/home/alice:/bin/zsh
alice:x:0:0::/root:/bin/bash"""


@pytest.fixture
def root(tmp_path: Path) -> str:
    etc = tmp_path / "etc"
    (etc / "skel").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (etc / "passwd").write_bytes(PASSWD)
    (etc / "group").write_bytes(b"root:x:0:\ntty:x:5:\nsudo:x:27:bob,alice\nalice:x:1000:\nodd:x:alice\n")
    (etc / "shadow").write_bytes(b"root:*:1:::::\n")
    (etc / "skel" / ".profile").write_bytes(b"hello\n")
    return f"{tmp_path}/"


def test_parse_passwd() -> None:
    alice = parse_passwd(PASSWD, b"alice")
    assert alice is not None
    assert (alice.uid, alice.gid, alice.home, alice.shell) == (1000, 1000, b"/home/alice", b"/bin/zsh")
    bare = parse_passwd(PASSWD, b"bare")
    assert bare is not None
    assert (bare.home, bare.shell) == (b"/", b"/bin/sh")


@pytest.mark.parametrize("name", [b"short", b"bad", b"huge", b"nobody", b"ali", b"root:x", b"", b"alice\n"])
def test_what_is_not_there(name: bytes) -> None:
    assert parse_passwd(PASSWD, name) is None


def test_groups(root: str) -> None:
    alice = find(b"alice", root)
    assert alice.groups == [1000, 27]
    assert alice.tty_gid == 5


def test_groups_are_bounded() -> None:
    account = Account(b"u", 1, 1, b"", b"")
    parse_groups(b"\n".join(b"g:x:%d:u" % number for number in range(2, 5000)), account)
    assert len(account.groups) == 1024


def test_without_a_group_file(root: str) -> None:
    Path(root, "etc/group").unlink()
    assert find(b"alice", root).groups == [1000]


@pytest.mark.skipif(os.getuid() != 0, reason="gives files away")
def test_a_user_is_made(root: str) -> None:
    made = find(b"mallory", root)
    assert (made.uid, made.gid, made.home, made.shell) == (1001, 1001, b"/home/mallory", b"/bin/bash")
    home = Path(root, "home/mallory")
    assert (home.stat().st_uid, home.stat().st_mode & 0o7777) == (1001, 0o700)
    assert ((home / ".profile").read_bytes(), (home / ".profile").stat().st_uid) == (b"hello\n", 1001)
    lines = Path(root, "etc/passwd").read_bytes().splitlines()
    assert lines[-2:] == [b"alice:x:0:0::/root:/bin/bash", b"mallory:x:1001:1001:,,,:/home/mallory:/bin/bash"]
    assert Path(root, "etc/shadow").read_bytes().startswith(b"root:*:1:::::\nmallory:!:")
    assert find(b"mallory", root).uid == 1001
    assert find(b"trent", root).uid == 1002


@pytest.mark.parametrize("name", [b"", b"A", b"1st", b"a b", b"a:b", b"a\nb", b"../x", b"x" * 33, b"\xff"])
def test_names_that_are_none(root: str, name: bytes) -> None:
    before = Path(root, "etc/passwd").read_bytes()
    with pytest.raises(UnknownUser):
        find(name, root)
    assert Path(root, "etc/passwd").read_bytes() == before


def test_no_id_is_left(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "_LAST_UID", 1000)
    with pytest.raises(UnknownUser):
        find(b"late", root)


def test_read_regular_takes_only_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "loop", "none", "."):
        with pytest.raises(OSError):
            read_regular(str(tmp_path / name))
    with pytest.raises(OSError, match="no regular file"):
        read_regular("/dev/zero")


def test_read_regular_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(1 << 34)
    assert len(read_regular(str(path))) == 1 << 20


def test_nothing_is_appended_through_a_link(root: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"untouched\n")
    Path(root, "etc/group").unlink()
    Path(root, "etc/group").symlink_to(target)
    with pytest.raises(OSError):
        find(b"mallory", root)
    assert target.read_bytes() == b"untouched\n"
