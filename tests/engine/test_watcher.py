"""What runs in a box is known, on each engine whose boxes a spawner enters; and nothing of that is seen inside."""

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio

from hermes import events
from hermes.broker.engines.base import Box, Engine
from hermes.broker.engines.docker import DockerEngine
from hermes.broker.engines.local import LocalEngine
from hermes.broker.image import Image
from hermes.broker.spools import Spool, Spools
from hermes.config import ContainerPoolConfig
from hermes.config.models import DockerConfig
from hermes.container import spool
from hermes.events import NetworkAttempted, ProcessExited, ProcessStarted
from hermes.evidence.intake import Reading
from hermes.testing.boxes import BoxClient, Running
from tests.engine.conftest import broker_umask, new_id

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

E = TypeVar("E", bound=events.Event)
_runs = itertools.count()


class House:
    """An engine, and the spools of its boxes."""

    def __init__(self, engine: Engine, spools: Spools) -> None:
        self.engine = engine
        self.spools = spools


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["local", "docker-spawner"])
async def house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, target_image: Image,
    pool_config: Callable[..., ContainerPoolConfig],
) -> AsyncIterator[House]:  # fmt: skip
    root = tmp_path_factory.mktemp("watched")
    spools = Spools(root / "watched")
    engine: Engine
    if request.param == "local":
        config = pool_config(watch={"spool_bytes": 4 << 20, "argument_bytes": 8192, "arguments": 64})
        engine = LocalEngine(config, data_dir=root, image=target_image, instance=f"watch-{os.getpid()}", spools=spools)
    else:
        docker = DockerConfig.model_validate({"host": request.getfixturevalue("docker_host"), "entry": "spawner"})
        config = pool_config(
            engine="docker", docker=docker, watch={"spool_bytes": 4 << 20, "argument_bytes": 8192, "arguments": 64}
        )
        engine = DockerEngine(config, data_dir=root, image=target_image, instance=f"watch-{os.getpid()}", spools=spools)
    with broker_umask():
        await engine.start()
        yield House(engine, spools)
        await engine.close()


class Watched:
    """A box that a session has, what runs in it, and what was seen."""

    def __init__(self, house: House, box: Box, client: BoxClient, one: Spool) -> None:
        self.house = house
        self.box = box
        self.client = client
        self._fd = os.dup(one.fd)
        self._reading = Reading()
        self._position = 0
        self._events: list[events.Event] = []

    def look(self) -> list[events.Event]:
        """What was seen so far."""
        while True:
            before = self._position
            for record, end in spool.read(self._fd, before):
                self._events += [event for event, _ in self._reading.feed(record)]
                self._position = end
            if self._position == before:
                return self._events

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.look() if isinstance(event, kind)]

    def programs(self) -> list[str]:
        return [event.program for event in self.of(ProcessStarted)]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - a spool sets no event of ours
                await asyncio.sleep(0.01)

    async def sh(self, script: str, *, user: str = "root", channel: int | None = None) -> str:
        """Run a script and return what it writes."""
        started = await self.client.container.spawn(argv=(b"/bin/sh", b"-c", script.encode()), user=user, channel=channel)
        result = await Running(started).result()
        return (result.stdout + result.stderr).decode(errors="replace").strip()

    async def python(self, code: str) -> str:
        result = await self.client.run(None, b"python3", b"-c", code.encode())
        return (result.stdout + result.stderr).decode(errors="replace").strip()

    def exit_of(self, program: str) -> list[ProcessExited]:
        """The ends of processes whose last program it was."""
        last = {event.pid: event.program for event in self.of(ProcessStarted) if event.error is None}
        return [event for event in self.of(ProcessExited) if last.get(event.pid) == program]

    def attempts(self, call: str, address: str) -> list[NetworkAttempted]:
        return [event for event in self.of(NetworkAttempted) if (event.call, event.address) == (call, address)]

    def close(self) -> None:
        os.close(self._fd)


@pytest_asyncio.fixture(loop_scope="module")
async def watched(house: House) -> AsyncIterator[Watched]:
    box = await house.engine.create(new_id())
    try:
        async with BoxClient(await house.engine.open(box)) as client:
            one = house.spools.of(box.id)
            assert one is not None
            for fd in one.give("s1"):
                os.close(fd)
            it = Watched(house, box, client, one)
            yield it
            it.close()
    finally:
        await house.engine.destroy(box)
        house.spools.end(box.id)
        house.spools.taken(box.id)


def watcher_pid(box: Box) -> int:
    """The process that watches the box."""
    (found,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.parent.exists() and b"hermes-watcher " + box.id.encode() in _read(path)
    ]
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# ---- programs


async def test_a_program_is_known_with_all_that_belongs_to_it(watched: Watched) -> None:
    number = await watched.sh("cd /usr && /bin/echo 'a b' \"$(printf 'x\\377')\" '' >/dev/null; echo $$", channel=7)
    await watched.until(lambda: watched.exit_of("/bin/echo"))
    (echo,) = [it for it in watched.of(ProcessStarted) if it.program == "/bin/echo"]
    assert echo.argv == ["/bin/echo", "a b", "x\\xff", ""]
    assert (echo.cwd, echo.uid, echo.gid, echo.channel, echo.parent) == ("/usr", 0, 0, 7, int(number))
    assert (echo.error, echo.truncated, echo.session_id) == (None, False, "s1")
    (end,) = watched.exit_of("/bin/echo")
    assert (end.pid, end.status, end.signal, end.channel) == (echo.pid, 0, None, 7)
    (shell,) = [it for it in watched.of(ProcessStarted) if it.pid == int(number)]
    assert (shell.program, shell.parent, shell.argv[:2]) == ("/bin/sh", 0, ["/bin/sh", "-c"])


async def test_how_a_process_ended_is_known(watched: Watched) -> None:
    await watched.sh("sh -c 'exit 42'; sh -c 'kill -9 $$'; sh -c 'kill -TERM $$'; true")
    await watched.until(lambda: len(watched.exit_of("/usr/bin/sh")) == 3)
    assert [(it.status, it.signal) for it in watched.exit_of("/usr/bin/sh")] == [(42, None), (None, "KILL"), (None, "TERM")]


async def test_who_runs_it_is_known(watched: Watched) -> None:
    await watched.sh("/bin/true", user="nobody")
    await watched.until(lambda: watched.exit_of("/bin/true") and len(watched.of(ProcessStarted)) == 2)
    assert {(it.program, it.uid, it.gid) for it in watched.of(ProcessStarted)} == {
        ("/bin/sh", 65534, 65534),
        ("/bin/true", 65534, 65534),
    }


async def test_what_could_not_be_executed_is_known_and_why(watched: Watched) -> None:
    elf = "b'\\x7fELF\\x01\\x01\\x01' + bytes(9) + b'\\x02\\0\\x28\\0' + bytes(200)"
    lost = "open('/bin/true','rb').read().replace(b'/lib64/ld-linux-x86-64.so.2', b'/lib64/ld-linux-x86-64.so.9')"
    await watched.python(
        "import os\n"
        "def put(name, data, mode=0o755):\n"
        "    open(name, 'wb').write(data); os.chmod(name, mode)\n"
        "def run(name):\n"
        "    if (pid := os.fork()) == 0:\n"
        "        try: os.execv(name, [name])\n"
        "        except OSError: os._exit(77)\n"
        "    os.waitpid(pid, 0)\n"
        f"put('/tmp/arm', {elf}); put('/tmp/text', b'hello\\n'); put('/tmp/plain', b'#!/bin/sh\\n', 0o644)\n"
        f"put('/tmp/script', b'#!/no/such\\n'); put('/tmp/lost', {lost}); put('/tmp/good', b'#!/bin/sh\\nexit 3\\n')\n"
        "for name in '/tmp/arm', '/tmp/text', '/tmp/plain', '/tmp/script', '/tmp/lost', '/tmp/none', '/tmp', '/tmp/good':\n"
        "    run(name)\n"
    )
    await watched.until(lambda: watched.exit_of("/tmp/good"))
    told = {it.program: it.error for it in watched.of(ProcessStarted) if it.program.startswith("/tmp")}
    assert told == {
        "/tmp/arm": "ENOEXEC", "/tmp/text": "ENOEXEC", "/tmp/plain": "EACCES", "/tmp/script": "ENOENT", "/tmp/lost": "ENOENT",
        "/tmp/none": "ENOENT", "/tmp": "EACCES", "/tmp/good": None,
    }  # fmt: skip
    assert [it.status for it in watched.exit_of("/tmp/good")] == [3]
    failed = {it.pid for it in watched.of(ProcessStarted) if it.error}
    assert not failed & {it.pid for it in watched.of(ProcessExited)}, "what never ran did not end"


async def test_a_program_without_a_name_is_known(watched: Watched) -> None:
    await watched.python(
        "import os, ctypes\n"
        "fd = os.memfd_create('x'); os.write(fd, open('/bin/true', 'rb').read())\n"
        "for way in range(2):\n"
        "    if (pid := os.fork()) == 0:\n"
        "        if way: os.execve(fd, ['by-fd'], {})\n"
        "        else: os.execv(f'/proc/self/fd/{fd}', ['by-path'])\n"
        "    os.waitpid(pid, 0)\n"
    )
    await watched.until(lambda: len(watched.of(ProcessExited)) >= 2)
    named = {it.argv[0]: (it.program, it.error) for it in watched.of(ProcessStarted) if it.argv and it.argv[0].startswith("by-")}
    assert set(named) == {"by-fd", "by-path"}
    assert all(program.startswith("/proc/self/fd/") and error is None for program, error in named.values())


async def test_none_of_a_burst_is_lost(watched: Watched) -> None:
    await watched.sh(
        "i=0; while [ $i -lt 200 ]; do /bin/true $i & i=$((i+1)); [ $((i % 20)) = 0 ] && wait; done; wait", channel=3
    )
    await watched.until(lambda: len(watched.exit_of("/bin/true")) == 200)
    seen = [it for it in watched.of(ProcessStarted) if it.program == "/bin/true"]
    assert sorted(int(it.argv[1]) for it in seen) == list(range(200))
    assert {(it.error, it.channel) for it in seen} == {(None, 3)}
    assert {it.status for it in watched.exit_of("/bin/true")} == {0}


async def test_an_orphan_belongs_to_the_channel_it_came_from(watched: Watched) -> None:
    await watched.sh("(/bin/sleep 0.2 && /bin/true orphan) </dev/null >/dev/null 2>&1 & exit", channel=4)
    await watched.sh("/bin/true other", channel=5)
    await watched.until(lambda: watched.exit_of("/bin/true")[1:])
    told = {it.argv[1]: (it.channel, it.parent) for it in watched.of(ProcessStarted) if it.program == "/bin/true"}
    assert told["other"][0] == 5
    assert told["orphan"][0] == 4


async def test_a_thread_that_executes_is_its_process(watched: Watched) -> None:
    await watched.python("import os, threading\nthreading.Thread(target=lambda: os.execv('/bin/true', ['by-thread'])).start()")
    await watched.until(lambda: watched.exit_of("/bin/true"))
    python, true = watched.of(ProcessStarted)[-2:]
    assert (true.argv, true.pid, true.error) == (["by-thread"], python.pid, None)
    assert [it.status for it in watched.exit_of("/bin/true")] == [0]


# ---- addresses


async def test_what_is_asked_of_the_network_is_known_with_its_outcome(watched: Watched) -> None:
    answer = await watched.python(
        "import socket, errno\n"
        "def say(f):\n"
        "    try: f(); print('ok')\n"
        "    except OSError as e: print(errno.errorcode[e.errno])\n"
        "tcp = lambda: socket.socket(); udp = lambda: socket.socket(type=socket.SOCK_DGRAM)\n"
        "listener = tcp(); listener.bind(('127.0.0.1', 4444)); listener.listen()\n"
        "say(lambda: tcp().connect(('192.0.2.1', 80)))\n"
        "say(lambda: tcp().connect(('127.0.0.1', 4445)))\n"
        "say(lambda: tcp().connect(('127.0.0.1', 4444)))\n"
        "say(lambda: tcp().bind(('127.0.0.1', 4444)))\n"
        "say(lambda: tcp().bind(('192.0.2.7', 4446)))\n"
        "say(lambda: udp().sendto(b'x', ('192.0.2.2', 53)))\n"
        "say(lambda: udp().sendto(b'x', ('127.0.0.1', 53)))\n"
        "say(lambda: udp().sendmsg([b'x'], [], 0, ('127.0.0.2', 54)))\n"
        "say(lambda: udp().connect(('127.0.0.1', 55)))\n"
        "say(lambda: socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80)))\n"
        "say(lambda: socket.socket(socket.AF_UNIX).connect('/no/such'))\n"
        "u = socket.socket(socket.AF_UNIX); u.bind('/tmp/u'); u.listen()\n"
        "say(lambda: socket.socket(socket.AF_UNIX).connect('/tmp/u'))\n"
        "say(lambda: socket.socket(socket.AF_UNIX).connect('\\0abstract'))\n"
    )
    await watched.until(lambda: watched.attempts("connect", "@abstract"))
    seen = [(it.call, it.family, it.protocol, it.address, it.port, it.outcome) for it in watched.of(NetworkAttempted)]
    assert seen == [
        ("bind", "inet", "tcp", "127.0.0.1", 4444, "bound"),
        ("connect", "inet", "tcp", "192.0.2.1", 80, "ENETUNREACH"),
        ("connect", "inet", "tcp", "127.0.0.1", 4445, "ECONNREFUSED"),
        ("connect", "inet", "tcp", "127.0.0.1", 4444, "connected"),
        ("bind", "inet", "tcp", "127.0.0.1", 4444, "EADDRINUSE"),
        ("bind", "inet", "tcp", "192.0.2.7", 4446, "EADDRNOTAVAIL"),
        ("sendto", "inet", "udp", "192.0.2.2", 53, "ENETUNREACH"),
        ("sendto", "inet", "udp", "127.0.0.1", 53, "sent"),
        ("sendmsg", "inet", "udp", "127.0.0.2", 54, "sent"),
        ("connect", "inet", "udp", "127.0.0.1", 55, "connected"),
        ("connect", "inet6", "tcp", "2001:db8::1", 80, answer.split()[9]),
        ("connect", "unix", "stream", "/no/such", 0, "ENOENT"),
        ("bind", "unix", "stream", "/tmp/u", 0, "bound"),
        ("connect", "unix", "stream", "/tmp/u", 0, "connected"),
        ("connect", "unix", "stream", "@abstract", 0, "ECONNREFUSED"),
    ]
    # What was foretold is what the kernel did.
    done = ["ok" if it[-1] in ("connected", "bound", "sent") else it[-1] for it in seen]
    assert [it for place, it in enumerate(done) if place not in (0, 12)] == answer.split()


async def test_a_storm_of_the_same_is_counted(watched: Watched) -> None:
    await watched.python(
        "import socket\n"
        "s = socket.socket(type=socket.SOCK_DGRAM)\n"
        "for i in range(500): s.sendto(b'x', ('127.0.0.1', 9))\n"
        "for i in range(5): s.sendto(b'x', ('127.0.0.1', 10 + i))\n"
    )
    await watched.until(lambda: sum(1 + it.repeated for it in watched.attempts("sendto", "127.0.0.1")) == 505)
    assert len(watched.attempts("sendto", "127.0.0.1")) == 7


# ---- hostile boxes


async def test_nothing_a_process_hands_over_stops_the_watcher(watched: Watched) -> None:
    code = (
        "import ctypes, os, socket, threading\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "L, bad = ctypes.c_long, (0, 1, 8, 4096, 0x7fffffffffff, 1 << 47, -1, -4096, 1 << 63)\n"
        "for p in bad:\n"
        "    for q in bad:\n"
        "        libc.syscall(L(59), ctypes.c_void_p(p & (2**64-1)), ctypes.c_void_p(q & (2**64-1)), L(0))\n"
        "        libc.syscall(L(322), L(p), ctypes.c_void_p(q & (2**64-1)), ctypes.c_void_p(p & (2**64-1)), L(0), L(0x1000))\n"
        "        libc.syscall(L(42), L(p), ctypes.c_void_p(q & (2**64-1)), L(p))\n"
        "        libc.syscall(L(44), L(p), L(0), L(0), L(0), ctypes.c_void_p(q & (2**64-1)), L(p))\n"
        "        libc.syscall(L(46), L(p), ctypes.c_void_p(q & (2**64-1)), L(0))\n"
        "        libc.syscall(L(307), L(p), ctypes.c_void_p(q & (2**64-1)), L(p), L(0))\n"
        "for size in range(130):\n"
        "    s = socket.socket(); libc.connect(s.fileno(), bytes([size % 20, 0]) + b'\\xff' * size, size)\n"
        "ring = (ctypes.c_void_p * 2)(); ring[0] = ring[1] = ctypes.addressof(ring)\n"
        "if not os.fork(): libc.syscall(L(59), b'/bin/true', ring, L(0)), os._exit(0)\n"
        "try: os.execv('/bin/true', ['a' * 100] * 100000)\n"
        "except OSError: pass\n"
        "os.execv('/bin/true', ['the-end', 'x' * 100000] + ['y'] * 5000)\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("its numbers are of x86_64")
    await watched.python(code)
    await watched.until(lambda: [it for it in watched.of(ProcessStarted) if it.argv[:1] == ["the-end"]])
    (last,) = [it for it in watched.of(ProcessStarted) if it.argv[:1] == ["the-end"]]
    assert last.truncated
    assert sum(map(len, last.argv)) <= 8192
    await watched.sh("/bin/true still-here")
    assert watched.programs().count("/bin/true") >= 3


async def test_memory_that_changes_while_it_is_read_hurts_nobody(watched: Watched) -> None:
    await watched.python(
        "import ctypes, os, threading, time\n"
        "libc = ctypes.CDLL(None)\n"
        "word = ctypes.create_string_buffer(b'/bin/true', 64)\n"
        "argv = (ctypes.c_void_p * 2)(ctypes.addressof(word), None)\n"
        "stop = time.monotonic() + 0.3\n"
        "def flip():\n"
        "    while time.monotonic() < stop:\n"
        "        word.value = b'/bin/nope'; argv[0] = 1; argv[0] = ctypes.addressof(word); word.value = b'/bin/none'\n"
        "threading.Thread(target=flip).start()\n"
        "while time.monotonic() < stop: libc.execv(word, argv)\n"
        "os.execv('/bin/true', ['survived'])\n"
    )
    await watched.until(lambda: [it for it in watched.of(ProcessStarted) if it.argv == ["survived"]])


async def test_a_box_whose_watcher_is_killed_ends(house: House, watched: Watched) -> None:
    ended = asyncio.Event()
    watched.box.on_exit.append(ended.set)
    await watched.sh("/bin/true before")
    os.kill(watcher_pid(watched.box), signal.SIGKILL)
    async with asyncio.timeout(20):
        await ended.wait()
    assert watched.box.lost == "its watcher died"
    with contextlib.suppress(Exception):
        await watched.sh("/bin/true after")
    await house.engine.destroy(watched.box)
    house.spools.end(watched.box.id)
    watched.look()
    assert watched._reading.over
    programs = [it.argv for it in watched.of(ProcessStarted)]
    assert ["/bin/true", "before"] in programs
    assert ["/bin/true", "after"] not in programs


async def test_a_box_of_which_too_much_is_seen_ends(house: House, watched: Watched) -> None:
    ended = asyncio.Event()
    watched.box.on_exit.append(ended.set)
    with contextlib.suppress(Exception):
        await watched.python("import os\nwhile True: os.spawnv(os.P_WAIT, '/bin/true', ['x' * 8000])")
    async with asyncio.timeout(30):
        await ended.wait()
    assert watched.box.lost
    assert watched.box.reached == {**watched.box.reached, "spool_bytes": 1}
    one = house.spools.of(watched.box.id)
    assert one is not None
    assert os.fstat(one.fd).st_size <= (4 << 20) + 1000


async def test_nothing_of_the_watcher_is_seen_inside(watched: Watched) -> None:
    told = await watched.python(
        "import os, socket\n"
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))\n"
        "others = [p for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()]\n"
        "print([p for p in others if b'watch' in open(f'/proc/{p}/cmdline', 'rb').read()])\n"
        "print(sorted(os.listdir('/proc/self/fd')))\n"
        "print(len(open('/proc/net/udp').readlines()), len(open('/proc/net/raw').readlines()))\n"
        "print(open('/proc/mounts').read().count('watch'), open('/proc/self/status').read().count('TracerPid:\\t0'))\n"
        "print(os.path.exists('/hermes'), 'HERMES' in str(os.environ))\n"
    )
    assert told.splitlines() == ["[]", "['0', '1', '2', '3']", "1 1", "0 1", "False False"]
