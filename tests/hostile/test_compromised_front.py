"""The front is taken over: code of an attacker's runs in it, confined as it is. What it tries is looked at from the host."""

import contextlib
import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hermes.broker.launcher import instance_of
from hermes.confine import landlock
from tests.sensors import Sensor, Start, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

needs_landlock = pytest.mark.skipif(landlock.abi() < 6, reason="this kernel's Landlock is too old, or off")
TAKEOVER = Path(__file__).with_name("takeover.py")
MAX_ACTIVE = 5


class Owned:
    """A sensor whose front is the attacker's."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor

    def __call__(self, code: str) -> Any:
        """Run code in the front, return the `result` it sets. EOFError when the front died of it."""
        payload = code.encode()
        with socket.create_connection(("127.0.0.1", self.sensor.port), timeout=90) as connection:
            connection.sendall(b"%d\n%s" % (len(payload), payload))
            data = b""
            try:
                while piece := connection.recv(65536):
                    data += piece
            except ConnectionResetError:
                pass
        if not data:
            raise EOFError
        answer = json.loads(data)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def attempts(self, *expressions: str) -> list[Any]:
        """What each comes to: a value, or the name of an errno."""
        listed = ", ".join(f"owned.attempt(lambda: {it})" for it in expressions)
        found: list[Any] = self(f"result = [{listed}]")
        return found

    @property
    def front(self) -> int:
        return self.sensor.pids()["front"]

    @property
    def broker(self) -> int:
        return self.sensor.pids()["broker"]

    def boxes(self) -> int:
        """Boxes there are, as the host sees them."""
        name = f"hermes-{instance_of(self.sensor.data_dir)}"
        roots = [path for path in (Path("/sys/fs/cgroup/pids") / name, Path("/sys/fs/cgroup") / name) if path.is_dir()]
        return sum(path.is_dir() for path in roots[0].iterdir()) if roots else 0


@pytest.fixture(scope="module")
def owned(start: Start) -> Owned:
    """Taken over; it dies seldom."""
    return take_over(start)


@pytest.fixture(scope="module")
def doomed(start: Start) -> Owned:
    """Taken over; it dies of each attempt."""
    return take_over(start)


def take_over(start: Start) -> Owned:
    settings = {"container_pool__max_active": str(MAX_ACTIVE), "container_pool__allocation_timeout": "3"}
    return Owned(start(command=(sys.executable, str(TAKEOVER), "launcher"), **settings))


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def rss(pid: int) -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


def test_it_is_the_front_of_a_real_sensor(owned: Owned) -> None:
    status = Path(f"/proc/{owned.front}/status").read_text()
    hermes = pwd.getpwnam("hermes")
    assert f"Uid:\t{hermes.pw_uid}\t{hermes.pw_uid}\t{hermes.pw_uid}\t{hermes.pw_uid}\n" in status
    assert set(re.findall(r"Cap\w+:\t(\w+)", status)) == {"0000000000000000"}
    assert re.findall(r"(?:NoNewPrivs|Seccomp):\t(\d)", status) == ["1", "2"]
    assert owned("result = os.getpid()") == owned.front


@needs_landlock
def test_no_files_but_its_own(owned: Owned) -> None:
    data = owned.sensor.data_dir
    secret = Path("/var/tmp/hermes-test-secret")
    secret.write_text("of another user, for everybody to read")
    try:
        found = owned.attempts(
            *(f"os.listdir({str(data / name)!r})" for name in ("images", "boxes", "stopped")),
            f"open({str(data / 'lock')!r}).read()", f"os.listdir({str(data)!r})", f"open({str(data / 'new')!r}, 'w')",
            f"open({str(secret)!r}).read()", f"open({str(secret)!r}, 'a')", f"os.unlink({str(secret)!r})",
            "open('/etc/shadow').read()", "open('/etc/passwd').read()", "os.listdir('/tmp')", "open('/dev/shm/x', 'w')",
            f"open('/proc/{owned.broker}/mem', 'rb')", f"open('/proc/{owned.broker}/environ').read()",
            f"os.listdir('/proc/{owned.broker}/fd')", f"open('/proc/{owned.broker}/cmdline').read()",
            f"os.symlink('/etc/shadow', {str(data / 'journal/link')!r})", f"os.mkfifo({str(data / 'journal/fifo')!r})",
            f"os.link({str(data / 'journal/journal.db')!r}, {str(data / 'journal/link')!r})",
            f"len(os.listdir({str(data / 'keys')!r})) >= 0", f"open({str(data / 'journal/own')!r}, 'w').write('x')",
        )  # fmt: skip
    finally:
        kept = secret.read_text()
        secret.unlink()
    assert kept == "of another user, for everybody to read"
    assert set(found[:17]) == {"EACCES"}
    assert found[17:] == ["EPERM", "EPERM", "EPERM", True, 1]
    assert not (data / "new").exists()
    assert not Path("/dev/shm/x").exists()
    assert not (data / "journal/link").is_symlink()


def test_nobody_is_signalled_and_nothing_is_made(owned: Owned) -> None:
    bystander = subprocess.Popen(["setpriv", "--reuid=hermes", "--clear-groups", "sleep", "infinity"])
    try:
        others = (owned.broker, owned.sensor.process.pid, bystander.pid, 1, -1)
        found = owned.attempts(
            *(f"os.kill({pid}, 9)" for pid in others), f"os.pidfd_open({owned.broker})",
            f"signal.pthread_kill(threading.get_ident(), 9) or ctypes.CDLL(None).tgkill({owned.broker}, {owned.broker}, 9)",
            f"__import__('fcntl').fcntl(owned.broker, 8, {bystander.pid})",
            "os.fork()", "os.setuid(0)", "os.chmod(owned.settings.journal_path, 0o777)",
        )  # fmt: skip
        assert set(found) == {"EPERM"}
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert owned("result = os.getpid()") == owned.front


def test_no_sockets_no_ports_no_connections(owned: Owned) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        port = canary.getsockname()[1]
        before = listening(owned.front)
        found = owned.attempts(
            "socket.socket()", "socket.socket(socket.AF_INET6)", "socket.socket(type=socket.SOCK_DGRAM)",
            "socket.socket(socket.AF_UNIX)", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "socket.socket(40, 1)",
            "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "owned.broker.connect('/run/hermes')",
        )  # fmt: skip
        assert found == ["EPERM"] * 8
        relayed = f"""
own = socket.socket(fileno=os.dup(listening.fileno()))
result = [
    owned.attempt(lambda: own.sendto(b"x", 0x20000000, ("127.0.0.1", {port}))),
    owned.attempt(lambda: own.sendmsg([b"x"], [], 0x20000000, ("127.0.0.1", {port}))),
    owned.attempt(lambda: own.bind(("127.0.0.1", 0))),
    owned.attempt(lambda: own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))),
]
"""
        assert owned(relayed) == ["EPERM"] * 4
        with pytest.raises(BlockingIOError):
            canary.accept()
        assert listening(owned.front) == before


def listening(pid: int) -> set[str]:
    """TCP sockets the process listens on."""
    inodes = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}  # noqa: PTH115
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def test_thousands_of_boxes_are_not_to_be_had(owned: Owned) -> None:
    code = """
seen = [owned.allocate(f"s{n}") for n in range(12)]
owned.broker.setblocking(True)
result = [sum("refused" not in one for one in seen), sorted({one for one in seen if "refused" in one})]
"""
    held, refusals = owned(code)
    assert held == MAX_ACTIVE
    assert all("container_pool.max_active" in reason for reason in refusals)
    assert wait_until(lambda: owned.boxes() <= MAX_ACTIVE + 3)  # and the warm ones, and those being made
    flood = """
answers = []
def read():
    while len(answers) < 3000:
        reply, fds = owned.answer()
        answers.append(type(reply).__name__)
        for fd in fds: os.close(fd)
reader = threading.Thread(target=read)
reader.start()
for n in range(3000):
    owned.broker.send(messages.encode(Allocate(session_id=f"t{n}")))
reader.join()
result = sorted(set(answers))
"""
    assert owned(flood) == ["Refused"]
    assert owned.boxes() <= MAX_ACTIVE + 3
    assert owned("result = owned.ask(Status())[0].active") == MAX_ACTIVE
    forged = """
for name in ("s0", "s1", "no-such-session", "s2", "s3", "s4"):
    owned.broker.send(messages.encode(Release(session_id=name)))
for box in owned.boxes.values(): box.close()
owned.boxes.clear()
owned.facts.clear()
result = owned.ask(Status())[0].active
"""
    assert owned(forged) == 0


def test_a_box_is_all_that_its_socket_reaches(owned: Owned) -> None:
    """Whatever is said to the box, only that box has it; and the box's own limits hold."""
    code = """
owned.allocate("mine")
box = owned.boxes["mine"]
dice = random.Random(7)
def junk(depth=0):
    return dice.choice([dice.randbytes(dice.randrange(200)), dice.randrange(-2**63, 2**64), "x" * dice.randrange(300), None, True,
                        {}, [], {dice.randrange(300): dice.randrange(-9, 2**40) for _ in range(5)}, "\\0", b"\\0/../..", "KILL"])
import msgspec
pack = msgspec.msgpack.encode
names = ["id", "user", "argv", "command", "env", "cwd", "terminal", "signal", "width", "height", "type"]
box.settimeout(5)
drained = []
def drain():
    while select.select([box], [], [], 0)[0]:
        data, fds = owned.hear(box)
        assert data, f"the box ended after message {n}: {message}"
        drained.append(len(data))
        for fd in fds: os.close(fd)
for n in range(1500):
    message = {"type": dice.choice(["Spawn", "Signal", "Resize", "Allocate", "x"]), "id": dice.randrange(1000, 2000)}
    message |= {dice.choice(names): junk() for _ in range(dice.randrange(4))}
    if dice.random() < .3:
        modes = {dice.randrange(256): dice.randrange(2**33)}
        message["terminal"] = {"term": "x" * 99, "width": junk(), "height": dice.randrange(-9, 2**33), "modes": modes}
    if dice.random() < .2:
        message["env"] = {dice.randbytes(4): dice.randbytes(4), b"A=B": b"\\0"}
    data = pack(message)
    if dice.random() < .2:
        data = data[:dice.randrange(len(data))] + dice.randbytes(9)
    if data:
        owned.attempt(lambda: box.send(data))
    drain()
for _ in range(20):
    drained.append(owned.attempt(lambda: socket.send_fds(box, [b"x"], [0] * 200)))
result = [owned.run("mine", b"echo alive; id -un; cat /proc/sys/kernel/hostname", 1), len(drained) > 100]
"""
    said, answered = owned(code)
    assert said == "alive\nroot\nsrv01\n"
    assert answered
    spawners = open_files(owned.broker)
    bomb = """
box = owned.boxes["mine"]
started, failed, fds_held = 0, 0, []
for n in range(5000, 5600):
    box.send(messages.encode(Spawn(id=n, command=b"exec sleep 1000")))
    while True:
        data, fds = owned.hear(box)
        reply = decode_box_reply(data)
        fds_held += fds
        if reply.id == n: break
    started += isinstance(reply, messages.Spawned)
    failed += isinstance(reply, messages.Failed)
for fd in fds_held: os.close(fd)
result = [started, failed]
"""
    started, failed = owned(bomb)
    assert started <= 256  # container_pool.limits.pids
    assert failed >= 600 - 256
    assert open_files(owned.broker) <= spawners + 5
    unread = """
box = owned.boxes["mine"]
box.setblocking(False)
sent = 0
try:
    for n in range(9000, 200000):
        box.send(messages.encode(Spawn(id=n, command=b"true")))
        sent += 1
except BlockingIOError:
    pass
result = sent
"""
    assert owned(unread) < 2000  # its spawner takes no more before its answers are read
    assert owned("result = owned.allocate('next') and owned.run('next', b'echo fine', 1)") == "fine\n"
    owned("for name in ('mine', 'next'): owned.broker.send(messages.encode(Release(session_id=name)))")
    assert owned("result = owned.ask(Status())[0].active") == 0


def test_what_breaks_the_protocol_costs_the_front_and_a_fresh_one_is_served(owned: Owned) -> None:
    broker = owned.broker
    broken = [
        "owned.broker.send(b'\\x81' * 100000)",
        "owned.broker.send(messages.encode(Allocate(session_id='../../etc')))",
        "owned.broker.send(messages.encode(Spawn(id=1)))",
    ]
    for code in broken:
        front = owned.front
        with contextlib.suppress(EOFError):
            owned(f"{code}\nwhile owned.hear(owned.broker)[0]: pass\nos._exit(0)")
        renewed(owned, front)
        assert owned("result = owned.allocate('fresh') and owned.run('fresh', b'echo served', 1)") == "served\n", code
        assert owned.broker == broker


def renewed(owned: Owned, front: int) -> None:
    """Return when another front answers."""

    def answers() -> bool:
        pids = owned.sensor.pids()
        try:
            return pids.get("front", front) != front and "broker" in pids and owned("result = 1") == 1
        except (OSError, EOFError):
            return False

    wait_until(answers)


def test_a_front_that_floods_and_never_reads_is_cut_off_and_bounded(owned: Owned) -> None:
    front, broker = owned.front, owned.broker
    before, files = rss(broker), open_files(broker)
    flood = """
owned.broker.setblocking(False)
passed = []
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        owned.broker.send(messages.encode(Status()))
    except BlockingIOError:
        select.select([], [owned.broker], [], 1)
    except OSError as error:
        passed.append(errno.errorcode[error.errno])
        break
result = passed
"""
    assert owned(flood) in (["EPIPE"], ["ECONNRESET"])
    if broker in owned.sensor.pids().values():
        assert rss(broker) - before < 32 * 1024 * 1024
        assert open_files(broker) <= files + 5
    with pytest.raises(EOFError):
        owned("os._exit(0)")
    renewed(owned, front)
    assert owned("result = owned.allocate('fresh') and owned.run('fresh', b'echo served', 1)") == "served\n"


def test_descriptors_are_not_taken_from_it(owned: Owned) -> None:
    files = open_files(owned.broker)
    code = """
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 250))]
status = [messages.encode(Status())]
result = sorted({str(owned.attempt(lambda: owned.broker.sendmsg(status, rights))) for _ in range(200)})
"""
    if tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 16):
        assert owned(code) == ["EPERM"]
        assert open_files(owned.broker) <= files
        assert owned("result = owned.ask(Status())[0].engine") == "local"
    else:
        front = owned.front
        owned(code)
        renewed(owned, front)


@pytest.mark.parametrize(
    "attempt",
    ["os.execv('/bin/true', ['true'])", "ctypes.CDLL(None).ptrace(16, {broker}, 0, 0)", "ctypes.CDLL(None).unshare(0x10000000)"],
)
def test_what_only_an_attacker_calls_ends_the_front_loudly(doomed: Owned, attempt: str) -> None:
    front, broker = doomed.front, doomed.broker
    told = doomed.sensor.said().count("SIGSYS")
    with pytest.raises(EOFError):
        doomed(attempt.format(broker=broker))
    wait_until(lambda: doomed.sensor.said().count("SIGSYS") > told)
    renewed(doomed, front)


def test_other_users_of_the_host_are_kept_out(start: Start) -> None:
    """Every file of a sensor that ran, asked for by another user."""
    sensor = start()
    assert sensor.ssh("echo secret > /root/x; echo said").stdout == b"said\n"
    sensor.sessions(ended=1)
    wait_until(lambda: any((sensor.data_dir / "stopped").iterdir()))
    assert sensor.stop(signal.SIGTERM) == 0
    paths = [path for path in sensor.data_dir.rglob("*") if not path.is_relative_to(sensor.data_dir / "images")]
    names = {path.relative_to(sensor.data_dir).parts[0] for path in paths}
    assert {"journal", "keys", "recordings", "boxes", "stopped", "lock"} <= names
    assert any(path.suffix == ".cast" for path in paths)
    script = """
import os, sys
for line in sys.stdin:
    path = line.rstrip("\\n")
    for kind, flags in (("read", os.O_RDONLY), ("write", os.O_WRONLY)):
        try:
            os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW))
            print(kind, path)
        except OSError:
            pass
    try:
        os.listdir(path)
        print("list", path)
    except OSError:
        pass
    try:
        os.close(os.open(os.path.join(os.path.dirname(path), "planted"), os.O_CREAT | os.O_WRONLY))
        print("plant", path)
    except OSError:
        pass
"""
    listed = "".join(f"{path}\n" for path in [sensor.data_dir, *paths] if "\n" not in str(path))
    done = subprocess.run(
        ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "/usr/bin/python3", "-c", script],
        input=listed, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == []
    control = subprocess.run(
        ["/usr/bin/python3", "-c", script], input=listed, capture_output=True, text=True, check=True, timeout=60
    )
    assert len(control.stdout.splitlines()) > len(paths)  # root gets them all: the question was a real one
    for planted in sensor.data_dir.rglob("planted"):
        planted.unlink()
    assert stat.S_IMODE(sensor.data_dir.stat().st_mode) == 0o711
