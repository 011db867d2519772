import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from hermes.container import Container, ContainerProcess, Exit, Terminal
from hermes.container.client import MAX_SPAWNING, one_line
from hermes.container.messages import (
    MAX_MESSAGE,
    BoxReply,
    Exited,
    Failed,
    Resize,
    Signal,
    Spawn,
    Spawned,
    decode_box_request,
    encode,
)
from hermes.errors import EngineError, SpawnError

PATIENCE = 10.0


class Box:
    """The other end of a box socket, played by hand."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.container = Container("box-1", ours, engine="fake", image="none", waited=0.5)

    async def request(self) -> Spawn | Signal | Resize:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, MAX_MESSAGE), PATIENCE)
        request: Spawn | Signal | Resize = decode_box_request(data)
        return request

    async def spawn_id(self) -> int:
        request = await self.request()
        assert isinstance(request, Spawn)
        return request.id

    def reply(self, message: BoxReply, fds: list[int] | None = None) -> None:
        socket.send_fds(self.sock, [encode(message)], fds or [])
        for fd in fds or []:
            os.close(fd)

    def spawned(self, id: int, *, terminal: bool = False) -> None:
        """Answer with ends of pipes, whose other ends are closed."""
        ends = [os.pipe() for _ in range(1 if terminal else 3)]
        for _, w in ends:
            os.close(w)
        self.reply(Spawned(id=id, pid=40 + id), [r for r, _ in ends])

    async def process(self, *, terminal: Terminal | None = None) -> ContainerProcess:
        """A process that runs."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.container.spawn(terminal=terminal))
            self.spawned(await self.spawn_id(), terminal=terminal is not None)
        return task.result()

    def nothing_asked(self) -> bool:
        try:
            self.sock.recv(10, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self.container.stop()
        self.sock.close()


@pytest_asyncio.fixture
async def box() -> AsyncIterator[Box]:
    box = Box()
    before = fds()
    yield box
    await turn()
    assert fds() <= before, "file descriptors leaked"
    box.close()


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


async def turn(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


# ---- starting processes


@pytest.mark.asyncio
async def test_a_spawn_carries_every_field(box: Box) -> None:
    terminal = Terminal(term="vt100", width=100, height=30, modes={53: 1})
    async with asyncio.TaskGroup() as group:
        task = group.create_task(
            box.container.spawn(
                user="bob", argv=(b"a", b"\xff"), command=b"c", env={b"A": b"\xfe"}, cwd=b"/\xfd", terminal=terminal
            )
        )
        request = await box.request()
        box.spawned(1, terminal=True)
    expected = Spawn(id=1, user="bob", argv=(b"a", b"\xff"), command=b"c", env={b"A": b"\xfe"}, cwd=b"/\xfd", terminal=terminal)
    assert request == expected
    process = task.result()
    assert (process.pid, process.tty, process.exit, box.container.processes) == (41, False, None, 1)
    assert process.terminal is not None
    assert process.stdin is process.stdout is process.stderr is None
    assert not os.get_blocking(process.terminal)
    assert not os.get_inheritable(process.terminal)
    process.close()


@pytest.mark.asyncio
async def test_answers_find_their_process_in_any_order(box: Box) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(box.container.spawn(command=b"%d" % n)) for n in range(20)]
        requests = [await box.request() for _ in range(20)]
        for request in reversed(requests):
            assert isinstance(request, Spawn)
            box.spawned(request.id)
    processes = [task.result() for task in tasks]
    assert [process.pid for process in processes] == [41 + n for n in range(20)]
    box.reply(Exited(id=processes[7].id, status=7))
    assert await asyncio.wait_for(processes[7].wait(), PATIENCE) == Exit(status=7)
    assert all(process.exit is None for process in processes if process is not processes[7])
    for process in processes:
        process.close()


@pytest.mark.asyncio
async def test_a_failure_is_a_spawn_error_fit_for_a_terminal(box: Box) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(refused(box))
        box.reply(Failed(id=await box.spawn_id(), error="no\nsuch \x1b[2Jfile" + "x" * 5000))
    error = task.result()
    assert isinstance(error, SpawnError)
    assert str(error).startswith("no\\nsuch \\x1b[2Jfile")
    assert len(str(error)) < 400


async def refused(box: Box) -> Exception:
    with pytest.raises((SpawnError, EngineError)) as error:
        await asyncio.wait_for(box.container.spawn(), PATIENCE)
    return error.value


@pytest.mark.asyncio
async def test_arguments_that_fit_no_packet_are_refused_and_hurt_nobody(box: Box) -> None:
    with pytest.raises(SpawnError, match="too long"):
        await box.container.spawn(command=b"x" * MAX_MESSAGE)
    (await box.process()).close()


@pytest.mark.asyncio
async def test_too_many_at_once_are_refused(box: Box) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(refused(box)) for _ in range(MAX_SPAWNING)]
        await turn()
        assert "already starting" in str(await refused(box))
        for _ in tasks:
            box.reply(Failed(id=await box.spawn_id(), error="no"))
    assert all(isinstance(task.result(), SpawnError) for task in tasks)
    (await box.process()).close()


@pytest.mark.asyncio
@pytest.mark.parametrize("reply_first", [True, False])
async def test_a_cancelled_spawn_leaves_no_process(box: Box, reply_first: bool) -> None:
    task = asyncio.get_running_loop().create_task(box.container.spawn())
    id = await box.spawn_id()
    if reply_first:
        box.spawned(id)
        box.container._packets._readable()  # the answer is in; the task that waits has not run
        task.cancel()
    else:
        task.cancel()
        await turn()
        box.spawned(id)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await box.request() == Signal(id=id, signal="KILL")
    box.reply(Exited(id=id, signal="KILL"))
    (await box.process()).close()
    assert box.container.processes == 1


@pytest.mark.asyncio
async def test_file_descriptors_lost_on_the_way_fail_the_spawn_alone(box: Box) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(refused(box))
        id = await box.spawn_id()
        box.spawned(id, terminal=True)  # one came, three were due
    assert "file descriptors were lost" in str(task.result())
    assert await box.request() == Signal(id=id, signal="KILL")
    (await box.process()).close()


# ---- ends


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Exited(id=1, status=0), Exit(status=0)),
        (Exited(id=1, status=255), Exit(status=255)),
        (Exited(id=1, signal="SEGV", core_dumped=True), Exit(signal="SEGV", core_dumped=True)),
        (Exited(id=1, status=-1), Exit(status=255)),
        (Exited(id=1, status=1 << 60), Exit(status=0)),
        (Exited(id=1), Exit(status=0)),
        (Exited(id=1, signal="\x1b]0;evil\x07"), Exit(signal="KILL")),
        (Exited(id=1, signal=""), Exit(signal="KILL")),
        (Exited(id=1, signal="A" * 1000), Exit(signal="KILL")),
        (Exited(id=1, signal="34"), Exit(signal="34")),
    ],
)
async def test_how_it_ended_is_passed_on_only_as_far_as_it_can_be_true(box: Box, message: Exited, expected: Exit) -> None:
    process = await box.process()
    box.reply(message)
    ends = await asyncio.wait_for(asyncio.gather(process.wait(), process.wait(), process.wait()), PATIENCE)
    assert set(ends) == {expected}
    assert await process.wait() == process.exit == expected
    assert not expected.lost
    process.close()


@pytest.mark.asyncio
async def test_an_end_right_behind_the_start_is_not_missed(box: Box) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(box.container.spawn())
        box.spawned(await box.spawn_id())
        box.reply(Exited(id=1, status=3))
    assert await asyncio.wait_for(task.result().wait(), PATIENCE) == Exit(status=3)
    task.result().close()


@pytest.mark.asyncio
async def test_a_cancelled_wait_does_not_hurt_the_others(box: Box) -> None:
    process = await box.process()
    async with asyncio.TaskGroup() as group:
        cancelled, kept = group.create_task(process.wait()), group.create_task(process.wait())
        await turn()
        cancelled.cancel()
        await turn()
        box.reply(Exited(id=1, status=0))
    assert kept.result() == Exit(status=0)
    process.close()


@pytest.mark.asyncio
async def test_when_the_box_goes_everything_ends_as_lost(box: Box) -> None:
    process = await box.process()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(process.wait())
        spawning = group.create_task(refused(box))
        await box.spawn_id()
        box.sock.close()
        await asyncio.wait_for(box.container.lost.wait(), PATIENCE)
    assert waiting.result().lost
    assert isinstance(spawning.result(), EngineError)
    assert isinstance(await refused(box), EngineError)
    process.signal("KILL")
    process.resize(1, 1)
    process.close()
    process.close()


@pytest.mark.asyncio
async def test_stop_ends_everything_and_is_no_loss(box: Box) -> None:
    process = await box.process()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(process.wait())
        spawning = group.create_task(refused(box))
        await box.spawn_id()
        box.container.stop()
    assert waiting.result().lost
    assert "stopped" in str(spawning.result())
    assert not box.container.lost.is_set()
    box.container.stop()
    process.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("packet", [b"\xff", encode(Spawn(id=1)), encode(Spawned(id=1, pid=1))[:-1]])
async def test_a_box_that_talks_nonsense_is_lost(box: Box, packet: bytes) -> None:
    box.sock.send(packet)
    await asyncio.wait_for(box.container.lost.wait(), PATIENCE)


@pytest.mark.asyncio
async def test_answers_nobody_asked_for_are_ignored_and_their_fds_closed(box: Box) -> None:
    box.spawned(99)
    box.reply(Failed(id=98, error="x"))
    box.reply(Exited(id=97, status=0))
    process = await box.process()
    box.reply(Exited(id=process.id, status=1))
    box.reply(Exited(id=process.id, status=2))
    box.spawned(process.id)
    assert await process.wait() == Exit(status=1)
    (await box.process()).close()
    process.close()


# ---- signals and sizes


@pytest.mark.asyncio
async def test_signals_are_passed_on_and_unknown_ones_ignored(box: Box) -> None:
    process = await box.process()
    process.signal("NOSUCH")
    process.signal("TERM")
    assert await box.request() == Signal(id=1, signal="TERM")
    box.reply(Exited(id=1, signal="TERM"))
    await process.wait()
    process.signal("KILL")
    await turn()
    assert box.nothing_asked()
    process.close()


@pytest.mark.asyncio
async def test_of_many_sizes_and_signals_only_the_latest_go_out(box: Box) -> None:
    process = await box.process(terminal=Terminal())
    for n in range(100_000):
        process.resize(n, n + 1)
        process.signal("INT")
    assert [await box.request(), await box.request()] == [
        Resize(id=1, width=65535, height=65535),
        Signal(id=1, signal="INT"),
    ]
    await turn()
    assert box.nothing_asked()
    process.close()


@pytest.mark.asyncio
async def test_a_million_sizes_to_a_box_that_does_not_read_queue_one(box: Box) -> None:
    process = await box.process(terminal=Terminal())
    sent = 0
    while not box.container._packets.blocked:
        process.resize(sent % 500, 24)
        sent += 1
        await asyncio.sleep(0)
    for n in range(1_000_000 // 1000):
        process.resize(n, 24)
        await asyncio.sleep(0)
    assert box.container._packets.queued == 1
    assert len(box.container._controls) == 1
    process.resize(77, 24)
    last = None
    while last != Resize(id=1, width=77, height=24):
        last = await box.request()
    process.close()


@pytest.mark.asyncio
async def test_without_a_terminal_there_is_no_size(box: Box) -> None:
    process = await box.process()
    process.resize(10, 10)
    await turn()
    assert box.nothing_asked()
    process.close()


@pytest.mark.parametrize(
    ("text", "expected"), [("plain é", "plain é"), ("a\nb\x1b[m", "a\\nb\\x1b[m"), ("\u202e\x9b", "\\u202e\\x9b")]
)
def test_one_line(text: str, expected: str) -> None:
    assert one_line(text) == expected
