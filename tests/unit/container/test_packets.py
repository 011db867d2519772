import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from hermes.container.messages import MAX_MESSAGE, BrokerRequest, Release, Status, decode_broker_request, encode
from hermes.container.packets import PacketSocket, ProtocolError, know_senders, refuse_descriptors

KERNEL = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


class End:
    """One end with what came in, and the raw socket of the other end."""

    def __init__(self, **options: int) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer.setblocking(False)
        self.messages: asyncio.Queue[tuple[BrokerRequest, list[int]]] = asyncio.Queue()
        self.closed: asyncio.Queue[str] = asyncio.Queue()
        self.writable = asyncio.Event()
        self.packets = PacketSocket(
            ours, decode_broker_request, self.received, self.closed.put_nowait, on_writable=self.writable.set, **options
        )
        self.packets.start()

    def received(self, message: BrokerRequest, fds: list[int]) -> None:
        if isinstance(message, Release) and message.session_id == "refuse":
            raise ProtocolError("not that one")
        kept = [] if isinstance(message, Release) and message.session_id == "leave" else fds.copy()
        if kept:
            fds.clear()
        self.messages.put_nowait((message, kept))

    def close(self) -> None:
        self.packets.close()
        self.peer.close()

    async def message(self) -> tuple[BrokerRequest, list[int]]:
        return await asyncio.wait_for(self.messages.get(), 5)

    async def reason(self) -> str:
        return await asyncio.wait_for(self.closed.get(), 5)


@pytest_asyncio.fixture
async def end() -> AsyncIterator[End]:
    end = End(max_queue=5)
    yield end
    end.close()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.fixture
def pipe_end() -> Iterator[int]:
    r, w = os.pipe()
    os.close(r)
    yield w
    os.close(w)


@pytest.mark.asyncio
async def test_messages_and_fds_arrive_whole(end: End, pipe_end: int) -> None:
    socket.send_fds(end.peer, [encode(Release(session_id="a" * 1000))], [pipe_end, pipe_end])
    end.peer.send(encode(Status()))
    message, fds = await end.message()
    assert message == Release(session_id="a" * 1000)
    assert len(fds) == 2
    assert all(not os.get_inheritable(fd) for fd in fds)
    assert (await end.message()) == (Status(), [])
    for fd in fds:
        os.close(fd)


@pytest.mark.asyncio
async def test_fds_nobody_takes_are_closed(end: End, pipe_end: int) -> None:
    before = open_fds()
    for session_id in ("leave", "refuse"):
        socket.send_fds(end.peer, [encode(Release(session_id=session_id))], [pipe_end])
    await end.message()
    assert await end.reason() == "protocol error: not that one"
    assert len(open_fds()) == len(before) - 1  # its own socket closed


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "packet",
    [
        b"\xff",
        b"{}",
        b"\x81\xa4type\xa5Bogus",
        b"\x82\xa4type\xa7Release\xaasession_id\x01",
        b"\x91" * 5000,
        b"\xa4\xff\xff\xff\xff",
    ],
)
async def test_garbage_closes_with_a_reason(end: End, packet: bytes) -> None:
    end.peer.send(packet)
    assert (await end.reason()).startswith("protocol error: ")
    assert end.packets.closed
    assert end.messages.empty()


@pytest.mark.asyncio
async def test_bad_utf8_in_a_string_is_a_protocol_error(end: End) -> None:
    end.peer.send(encode(Release(session_id="abc")).replace(b"abc", b"\xff\xfe\xfd"))
    assert (await end.reason()).startswith("protocol error: ")


@pytest.mark.asyncio
async def test_a_packet_that_is_too_long_closes(end: End) -> None:
    end.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
    end.peer.send(encode(Release(session_id="x" * MAX_MESSAGE)))
    assert await end.reason() == "protocol error: a message is too long"


@pytest.mark.asyncio
async def test_the_other_end_going_is_told_once(end: End) -> None:
    end.peer.close()
    assert await end.reason() == "the other end is gone"
    assert not end.packets.send(b"x")
    assert end.closed.empty()


@pytest.mark.asyncio
async def test_too_long_or_closed_is_refused_and_fds_closed(end: End) -> None:
    before = open_fds()
    r, w = os.pipe()
    assert not end.packets.send(b"x" * (MAX_MESSAGE + 1), [r])
    end.packets.close()
    assert not end.packets.send(b"x", [w])
    assert len(open_fds()) == len(before) - 1
    assert end.closed.empty()


@pytest.mark.asyncio
async def test_a_reader_that_stops_is_queued_for_in_order_and_bounded(end: End) -> None:
    sent = []
    for n in range(100_000):
        data = encode(Release(session_id=f"{n:0>1000}"))
        if not end.packets.send(data):
            break
        sent.append(data)
    assert end.packets.blocked
    assert len(sent) < 100_000
    got: list[bytes] = []
    while len(got) < len(sent):
        try:
            got.append(end.peer.recv(MAX_MESSAGE))
        except BlockingIOError:
            await asyncio.wait_for(end.writable.wait(), 5)
    assert got == sent
    await asyncio.wait_for(end.writable.wait(), 5)
    assert not end.packets.blocked
    assert end.packets.send(b"again")


@pytest.mark.asyncio
async def test_fds_still_queued_at_close_are_closed(end: End) -> None:
    while not end.packets.blocked:
        end.packets.send(b"x" * 10_000)
    before = open_fds()
    for _ in range(2):
        r, w = os.pipe()
        assert end.packets.send(b"x", [r, w])
    end.packets.close()
    assert len(open_fds()) == len(before) - 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.asyncio
async def test_only_its_own_user_is_heard() -> None:
    end = End(peer=os.getuid())
    end.peer.send(encode(Status()))
    assert (await end.message()) == (Status(), [])
    send = "import os, sys; os.write(int(sys.argv[1]), sys.stdin.buffer.read())"
    command = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", send, str(end.peer.fileno())]
    other = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, pass_fds=(end.peer.fileno(),))
    await other.communicate(encode(Status()))
    assert await end.reason() == f"protocol error: user 65534 has the socket of user {os.getuid()}"
    end.close()


@pytest.mark.skipif(KERNEL < (6, 16), reason="came with Linux 6.16")
def test_descriptors_can_be_refused_by_the_kernel(pipe_end: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        refuse_descriptors(theirs)
        with pytest.raises(PermissionError):
            socket.send_fds(ours, [b"x"], [pipe_end])
        ours.send(b"y")
        assert theirs.recv(10) == b"y"


@pytest.mark.asyncio
@pytest.mark.parametrize("known", [True, False])
async def test_what_was_sent_before_senders_were_known_is_nobodys(known: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if known:
        know_senders(ours)
    theirs.send(encode(Status()))
    heard: asyncio.Queue[BrokerRequest | str] = asyncio.Queue()
    packets = PacketSocket(
        ours, decode_broker_request, lambda message, _: heard.put_nowait(message), heard.put_nowait, peer=os.getuid()
    )  # fmt: skip
    packets.start()
    nobodys = f"protocol error: user 65534 has the socket of user {os.getuid()}"
    assert await asyncio.wait_for(heard.get(), 20) == (Status() if known else nobodys)
    packets.close()
    theirs.close()
