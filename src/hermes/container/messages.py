"""What the front says to the broker and to a box, and back, and the launcher to both: the protocols, as typed records.

All run over `AF_UNIX` `SOCK_SEQPACKET` sockets: one packet is one message (msgpack, tagged), file descriptors ride along
as `SCM_RIGHTS`. The *broker socket* asks for boxes. The *box socket*, handed out with an allocated box, starts processes in that
one box: at its other end stands the box's spawner, or a stand-in that speaks the engine's own exec API. The *control socket* is
the launcher's to each of the two: nothing is said back.
"""

from typing import Literal, TypeAlias

import msgspec

MAX_MESSAGE = 192 * 1024
"""Longest message either side accepts, in bytes. A longer one cannot be sent over a default-sized socket."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="type", omit_defaults=True):
    pass


class Terminal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The terminal a process gets: type, size in characters and pixels, and RFC 4254 modes by opcode."""

    term: str = "xterm"
    width: int = 80
    height: int = 24
    pixel_width: int = 0
    pixel_height: int = 0
    modes: dict[int, int] = {}


# ---- box socket: front -> box


class Spawn(_Message, frozen=True, kw_only=True):
    """Start a process. `id` is the caller's, unique on this socket; every later message about the process carries it.

    With `argv`, exactly that is executed (searched in PATH). Otherwise the user's login shell runs: with `command` as
    `$SHELL -c command`, without it as a login shell (`argv[0]` begins with `-`), as sshd does.
    """

    id: int
    user: str = "root"
    argv: tuple[bytes, ...] = ()
    command: bytes | None = None
    env: dict[bytes, bytes] = {}
    """Added to, and overriding, what a login of `user` has (USER, LOGNAME, HOME, SHELL, PATH, MAIL, TERM)."""
    cwd: bytes | None = None
    """Working directory; the user's home when None; `/` where it cannot be entered."""
    channel: int | None = None
    """The SSH channel it runs for: what it and its descendants do is stated with it."""
    terminal: Terminal | None = None
    """With a terminal: one fd, a pty master. Without: three fds, the ends of stdin, stdout and stderr."""


class Signal(_Message, frozen=True, kw_only=True):
    """Send a signal (name without SIG, such as `TERM`) to the process's session. Unknown ids and names are ignored."""

    id: int
    signal: str


class Resize(_Message, frozen=True, kw_only=True):
    """Set the terminal's size, where the fd is no real pty (`Spawned.tty` false)."""

    id: int
    width: int
    height: int
    pixel_width: int = 0
    pixel_height: int = 0


# ---- box socket: box -> front


class Spawned(_Message, frozen=True, kw_only=True):
    """The process runs; its fds ride along: the pty master, or stdin's write end, stdout's and stderr's read ends."""

    id: int
    pid: int
    """In the box's own pid namespace when known, else 0."""
    tty: bool = False
    """The fd is a real pty master: TIOCSWINSZ works on it."""


class Failed(_Message, frozen=True, kw_only=True):
    """The process could not be started."""

    id: int
    error: str


class Exited(_Message, frozen=True, kw_only=True):
    """The process has ended: with an exit `status`, or by a `signal` (name without SIG)."""

    id: int
    status: int | None = None
    signal: str | None = None
    core_dumped: bool = False


BoxRequest: TypeAlias = Spawn | Signal | Resize
BoxReply: TypeAlias = Spawned | Failed | Exited

# ---- broker socket: front -> broker


class Allocate(_Message, frozen=True, kw_only=True):
    """Give this session a box. Answered by `Allocated` or `Refused`; asking again gives the same box."""

    session_id: str


class Release(_Message, frozen=True, kw_only=True):
    """This session is over; stop its box. Not answered. Unknown sessions are ignored."""

    session_id: str


class Status(_Message, frozen=True, kw_only=True):
    """How is the pool? Answered by `PoolStatus`."""


class Taken(_Message, frozen=True, kw_only=True):
    """All that the box's spool holds is in the journal. Answered by `Dropped` once it is removed."""

    container_id: str


# ---- broker socket: broker -> front


class Allocated(_Message, frozen=True, kw_only=True):
    """A box for the session; the box socket rides along as one fd. Where the box is watched two more follow: its spool (see
    `hermes.container.spool`), to read, and an eventfd that becomes readable when there is more in it."""

    session_id: str
    container_id: str
    engine: str
    image: str
    waited: float
    """Seconds the session waited for it."""


class Refused(_Message, frozen=True, kw_only=True):
    """No box for the session, and why."""

    session_id: str
    reason: str


class Spooled(_Message, frozen=True, kw_only=True):
    """The spool of a box that a session had, and that no front has taken wholly. It and its eventfd ride along, as with
    `Allocated`."""

    container_id: str
    session_id: str


class Dropped(_Message, frozen=True, kw_only=True):
    """The box's spool is removed: it will not be offered again."""

    container_id: str


class PoolStatus(_Message, frozen=True, kw_only=True):
    """What the pool holds."""

    engine: str
    size: int
    warm: int
    creating: int
    active: int
    stopped: int


class BrokerEvent(_Message, frozen=True, kw_only=True):
    """A fact the broker states; the front writes it to the journal. `kind` is an event's name, `fields` its fields."""

    kind: str
    fields: dict[str, str | int | float | bool | None]


# ---- control socket: launcher -> front, launcher -> broker


class Peer(_Message, frozen=True, kw_only=True):
    """The other of the two has started; this process's end of the broker socket between them rides along as one fd."""

    deaths: list[tuple[str, str]] = []
    """Processes that died since the two were last connected: name, and how."""


class Reload(_Message, frozen=True, kw_only=True):
    """The operator changed settings; all that are in effect now ride along as JSON, in one fd that is read from its beginning."""

    changed: list[str]
    """Their keys."""
    ignored: list[str]
    """Keys of settings that were changed and wait for a restart."""


BrokerRequest: TypeAlias = Allocate | Release | Taken | Status
BrokerReply: TypeAlias = Allocated | Refused | Spooled | Dropped | PoolStatus | BrokerEvent
ControlMessage: TypeAlias = Peer | Reload

encode = msgspec.msgpack.Encoder().encode
decode_box_request = msgspec.msgpack.Decoder(BoxRequest).decode
decode_box_reply = msgspec.msgpack.Decoder(BoxReply).decode
decode_broker_request = msgspec.msgpack.Decoder(BrokerRequest).decode
decode_broker_reply = msgspec.msgpack.Decoder(BrokerReply).decode
decode_control = msgspec.msgpack.Decoder(ControlMessage).decode

SIGNALS: tuple[str, ...] = ("ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2")
"""Signals that RFC 4254 (6.9) names."""

EngineName: TypeAlias = Literal["local", "docker"]
