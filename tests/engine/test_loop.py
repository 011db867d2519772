"""Real loop devices."""

import errno
import fcntl
import os
from pathlib import Path
from typing import cast

import pytest

from hermes.broker import loop
from hermes.testing.boxes import eventually

pytestmark = pytest.mark.root


@pytest.fixture
def file(tmp_path: Path) -> int:
    path = tmp_path / "image"
    path.write_bytes(b"x" * (1 << 20))
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def stands_for(device: str) -> str | None:
    """The file behind a loop device."""
    try:
        return Path("/sys/block", Path(device).name, "loop/backing_file").read_text().strip()
    except OSError:
        return None


@pytest.mark.asyncio
async def test_a_device_is_there_until_nobody_uses_it(file: int, tmp_path: Path) -> None:
    with loop.attached(file) as device:
        os.close(file)
        assert stands_for(device) == str(tmp_path / "image")
        assert Path(device).read_bytes()[:4] == b"xxxx"

    async def gone() -> bool:
        return stands_for(device) != str(tmp_path / "image")

    await eventually(gone)


def test_many_at_once_are_different_devices(file: int) -> None:
    with loop.attached(file) as first, loop.attached(file) as second:
        assert first != second
    os.close(file)


def test_a_device_that_another_took_first_is_passed_over(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.ioctl
    told: list[int] = []

    def slow(fd: int, request: int, *argument: object) -> int:
        if request == loop._GET_FREE and not told:
            told.append(int(Path(taken).name.removeprefix("loop")))
            return told[0]
        return cast(int, real(fd, request, *argument))  # type: ignore[call-overload]

    with loop.attached(file) as taken:
        monkeypatch.setattr(fcntl, "ioctl", slow)
        with loop.attached(file) as device:
            assert device != taken
    assert len(told) == 1
    os.close(file)


@pytest.mark.parametrize(
    ("answer", "message"), [(errno.ENOSPC, "no loop device is free"), (errno.EBUSY, "others take every free loop device")]
)
def test_none_left(file: int, monkeypatch: pytest.MonkeyPatch, answer: int, message: str) -> None:
    real = fcntl.ioctl
    refused = loop._GET_FREE if answer == errno.ENOSPC else loop._CONFIGURE

    def exhausted(fd: int, request: int, *argument: object) -> int:
        if request == refused:
            raise OSError(answer, os.strerror(answer))
        return cast(int, real(fd, request, *argument))  # type: ignore[call-overload]

    monkeypatch.setattr(fcntl, "ioctl", exhausted)
    monkeypatch.setattr(loop, "_TRIES", 3)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(OSError, match=message), loop.attached(file):
        pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    os.close(file)


def test_a_kernel_without(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_CONTROL", "/dev/no-such-control")
    with pytest.raises(OSError, match="modprobe loop"), loop.attached(file):
        pass
    os.close(file)
