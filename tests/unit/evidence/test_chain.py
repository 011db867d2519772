"""The chain's file."""

import errno
import os
from pathlib import Path

import pytest

from hermes.evidence import chain, manifest
from tests.unit.evidence.test_manifest import made


def test_what_is_appended_is_read_back_and_a_torn_line_is_cut_off_by_the_writer(tmp_path: Path) -> None:
    path = tmp_path / chain.NAME
    assert list(chain.lines(path)) == []
    assert chain.tail(path, 3) == []
    many = [made(number) for number in range(1, 500)]
    chain.append(path, many[:200])
    chain.append(path, many[200:])
    expected = [manifest.encode(one) for one in many]
    assert [line for _, line in chain.lines(path)] == expected
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(expected[0][:30])
    assert [line for _, line in chain.lines(path)] == expected
    for count in (1, 7, 498, 499, 1000):
        assert chain.tail(path, count) == expected[-count:]
    assert path.stat().st_size == size


def test_a_disk_that_takes_only_some_leaves_the_chain_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / chain.NAME
    chain.append(path, [made(1)])
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no room"):
            chain.append(path, [made(2), made(3)])
    assert path.read_bytes() == before
    chain.append(path, [made(2)])
    assert len(list(chain.lines(path))) == 2


def test_the_older_half_goes_and_the_rest_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / chain.NAME
    assert chain.excess(path, 10) == []
    chain.append(path, [made(number) for number in range(10, 110)])
    size = path.stat().st_size
    assert chain.excess(path, size) == []
    first, last = chain.excess(path, size - 1)
    assert first.sequence == 10
    assert 55 <= last.sequence <= 62
    kept = path.read_bytes().splitlines(keepends=True)[last.sequence - 9 :]
    chain.cut(path, last.sequence)
    assert path.read_bytes() == b"".join(kept)
    assert path.stat().st_size <= size // 2 + len(kept[0])
    assert [it.name for it in tmp_path.iterdir()] == [chain.NAME]


def test_a_file_that_holds_nothing_but_a_torn_line_is_an_empty_chain(tmp_path: Path) -> None:
    path = tmp_path / chain.NAME
    path.write_bytes(b'{"torn')
    assert chain.tail(path, 1) == []
    assert path.read_bytes() == b""


def test_its_head() -> None:
    one = made(7)
    assert chain.head_of(one) == (7, manifest.digest(manifest.encode(one)), "j", 9)


def test_it_is_not_followed_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / chain.NAME
    path.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"")
    with pytest.raises(OSError, match=chain.NAME):
        chain.append(path, [made()])
    assert (tmp_path / "elsewhere").read_bytes() == b""
