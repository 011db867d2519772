"""A process that is confined as the front is: it tries, and the kernel answers."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes.confine import landlock

needs_landlock = pytest.mark.skipif(landlock.abi() < 6, reason="this kernel's Landlock is too old, or off")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has power to give up")

CONFINED = """
import ctypes, errno, json, os, signal, socket, sqlite3, sys, threading, zlib
from pathlib import Path
from hermes import log
from hermes.broker import filters
from hermes.confine import landlock
from hermes.confine.process import confine
from hermes.config import LoggingConfig

libc = ctypes.CDLL(None, use_errno=True)
own, other = Path(sys.argv[1]), Path(sys.argv[2])
log.configure(LoggingConfig(), process="test")
{before}
rules = [landlock.Rule(own, landlock.OWN), landlock.Rule(Path("/proc/self"), landlock.Files.READ_FILE)]
confine("nobody", filters.front(), rules)

def attempt(what):
    try:
        return what()
    except OSError as error:
        return errno.errorcode[error.errno]
    except Exception as error:
        return type(error).__name__

{after}
"""


@pytest.fixture
def places() -> Iterator[tuple[Path, Path]]:
    """A directory of the confined process's own, and another in which its user may do everything too."""
    place = Path(tempfile.mkdtemp(dir="/var/tmp"))
    place.chmod(0o711)
    for name in ("own", "other"):
        (place / name).mkdir()
        (place / name / "file").write_text(name)
        for path in (place / name, place / name / "file"):
            os.chown(path, 65534, 65534)
    yield place / "own", place / "other"
    shutil.rmtree(place)


def run(places: tuple[Path, Path], after: str, before: str = "") -> "subprocess.CompletedProcess[str]":
    code = CONFINED.format(before=before, after=after)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, places)], capture_output=True, text=True, check=False, timeout=60
    )


def outcomes(places: tuple[Path, Path], *attempts: str, before: str = "") -> list[object]:
    listed = ", ".join(f"attempt(lambda: {it})" for it in attempts)
    done = run(places, f"print(json.dumps([{listed}], default=repr))", before)
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_power_is_given_up_for_good(places: tuple[Path, Path]) -> None:
    before = """
libc.prctl(8, 1, 0, 0, 0)  # keep capabilities
libc.prctl(28, 0x10, 0, 0, 0)  # and through a change of user
"""
    done = run(places, 'print(open("/proc/self/status").read()); print(os.getresuid(), os.getresgid(), os.getgroups())', before)
    *lines, ids = done.stdout.strip().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    assert {name: int(value, 16) for name, value in status.items() if name.startswith("Cap")} == {
        "CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0,
    }  # fmt: skip
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    group = Path("/etc/passwd").read_text().split("nobody:")[1].split(":")[2]
    assert ids == f"(65534, 65534, 65534) ({group}, {group}, {group}) []"


def test_what_needs_power_is_refused(places: tuple[Path, Path]) -> None:
    found = outcomes(
        places, "os.setuid(0)", "os.setgroups([0])", "os.kill(os.getppid(), 0)", "os.kill(os.getpid(), 9)", "os.fork()",
        'socket.socket()', "socket.socket(socket.AF_UNIX)", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "os.link(own / 'file', own / 'link')", "os.symlink('/etc', own / 'link')", "os.mkfifo(own / 'fifo')",
        "os.chmod(own / 'file', 0o4777)", "os.nice(-1)", "libc.prctl(4, 1, 0, 0, 0)", "os.memfd_create('x')",
    )  # fmt: skip
    assert found == [*["EPERM"] * 13, -1, "EPERM"]


@needs_landlock
def test_files_are_its_own(places: tuple[Path, Path]) -> None:
    found = outcomes(
        places,
        "(own / 'file').read_text()", "(own / 'new').write_text('x')", "(own / 'new').rename(own / 'newer')",
        "(own / 'newer').unlink()", "(own / 'd').mkdir()", "(own / 'd').rmdir()",
        "(other / 'file').read_text()", "(other / 'new').write_text('x')", "os.listdir(other)", "(other / 'file').unlink()",
        "os.truncate(other / 'file', 0)", "(own / 'file').rename(other / 'file')", "(other / 'd').mkdir()",
        "Path('/etc/passwd').read_text()", "os.listdir('/')", "Path('/proc/1/status').read_text()", "os.open('/dev/null', 1)",
        f"Path('/proc/{os.getpid()}/cmdline').read_text()", "len(Path('/proc/self/statm').read_text().split())",
    )  # fmt: skip
    assert found[:6] == ["own", 1, repr(places[0] / "newer"), None, None, None]
    assert found[6:-1] == ["EACCES"] * 12
    assert found[-1] == 7


@needs_landlock
def test_what_is_open_already_stays_usable_and_nothing_else_is_reached(places: tuple[Path, Path]) -> None:
    """A listening socket does; even with one made before, no port is taken and nothing connected to."""
    before = """
import _socket
listening = socket.create_server(("127.0.0.1", 0))
spare = socket.socket()
target = listening.getsockname()
"""
    found = outcomes(
        places, "listening.listen(5)", "spare.bind(('127.0.0.1', 0))", "spare.connect(target)",
        "spare.sendto(b'x', 0x20000000, target)", "spare.sendmsg([b'x'], [], 0x20000000, target)",
        "[end.fileno() > 0 for end in socket.socketpair()]",
        before=before,
    )  # fmt: skip
    assert found == [None, "EPERM", "EPERM", "EPERM", "EPERM", [True, True]]


def test_what_the_front_is_made_of_works(places: tuple[Path, Path]) -> None:
    work = """
import asyncio
def work():
    db = sqlite3.connect(own / "db")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE t (a)")
    db.executemany("INSERT INTO t VALUES (?)", ((i,) for i in range(5000)))
    db.commit()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    rows = db.execute("SELECT count(*) FROM (SELECT a FROM t ORDER BY random())").fetchone()[0]
    db.execute("VACUUM")
    db.close()
    seen = []
    squeeze = lambda: seen.append(len(zlib.decompress(zlib.compress(os.urandom(10000)))))
    threads = [threading.Thread(target=squeeze) for _ in range(5)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    key = asyncssh.generate_private_key("ssh-ed25519")
    async def on_a_loop():
        reader, writer = os.pipe()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
        os.set_blocking(reader, False)
        return await asyncio.get_running_loop().run_in_executor(None, len, "four")
    return [rows, seen, bool(key.sign(b"x", b"ssh-ed25519")), asyncio.run(on_a_loop())]
print(json.dumps(attempt(work)))
"""
    before = "import asyncio, asyncssh, concurrent.futures.thread; os.environ['SQLITE_TMPDIR'] = str(own)"
    done = run(places, work, before)
    assert json.loads(done.stdout.splitlines()[-1]) == [5000, [10000] * 5, True, 4], done.stderr
    assert "too late" not in done.stderr


@pytest.mark.parametrize(
    "attempt",
    [
        "os.execv('/bin/true', ['true'])",
        "libc.ptrace(16, os.getppid(), 0, 0)",
        "libc.unshare(0x10000000)",
        "libc.mount(b'a', b'b', 0)",
    ],
)
def test_what_only_an_attacker_tries_is_the_end(places: tuple[Path, Path], attempt: str) -> None:
    done = run(places, f"{attempt}\nprint('went on')")
    assert (done.returncode, done.stdout) == (-31, "")  # SIGSYS


@needs_landlock
def test_an_import_that_comes_too_late_is_loud(places: tuple[Path, Path]) -> None:
    done = run(places, "print(attempt(lambda: __import__('poplib')))")
    assert done.stdout.strip() == "ModuleNotFoundError"
    assert "imported too late" in done.stderr
    assert "poplib" in done.stderr


def test_a_kernel_without_landlock_is_said_so(places: tuple[Path, Path]) -> None:
    done = run(places, "print((other / 'file').read_text())", "landlock.abi = lambda: 0")
    assert done.stdout.strip() == "other"
    assert "does not restrict this process fully" in done.stderr


def test_a_process_with_threads_is_not_confined(places: tuple[Path, Path]) -> None:
    done = run(places, "", "threading.Thread(target=threading.Event().wait, daemon=True).start()")
    assert "a process with threads cannot be confined" in done.stderr


def test_an_unknown_user_is_named() -> None:
    code = "from hermes.confine.process import drop_privileges; drop_privileges('no-such-user')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "sensor.user 'no-such-user' does not exist" in done.stderr
