"""The catalogue of events: one frozen record a fact. Emitters, sinks and docs are checked against `ALL`.

An event states what happened; the journal adds when (`time`), where (`sensor`) and its place in the order (`id`).
Text that an attacker sent is made with `from_bytes`.
"""

import msgspec


def from_bytes(data: bytes) -> str:
    """Return attacker bytes as text: UTF-8 as it is; where it is not UTF-8, bad bytes as `\\xNN` and each backslash doubled."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.replace(b"\\", b"\\\\").decode(errors="backslashreplace")


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=False):
    """A fact. Its tag is `noun.verb`; `connection_id` and `session_id` tie it to its connection and session."""

    connection_id: str | None = None
    session_id: str | None = None

    @classmethod
    def tag(cls) -> str:
        """The event's name in the journal, such as `connection.opened`."""
        tag = cls.__struct_config__.tag
        assert isinstance(tag, str)
        return tag


CAUSES = (
    "client", "lost", "protocol-error", "auth-failures", "login-timeout", "idle-timeout", "session-timeout", "limit",
    "recording-failed", "container-lost", "journal-failed", "shutdown",
)  # fmt: skip
"""Why a connection ended."""

# ---- connections


class ConnectionOpened(Event, frozen=True, kw_only=True, tag="connection.opened"):
    """A client connected."""

    source_ip: str
    source_port: int
    local_ip: str
    local_port: int
    proxied: bool = False
    """The addresses are those of a PROXY protocol header."""


class ConnectionOrigin(Event, frozen=True, kw_only=True, tag="connection.origin"):
    """Where the client's address is registered, by the databases that the operator has (`geo`)."""

    country: str | None = None
    """ISO 3166-1 alpha-2."""
    asn: int | None = None
    """The autonomous system that announces it."""
    organization: str | None = None
    """Whose that system is."""


class ConnectionRefused(Event, frozen=True, kw_only=True, tag="connection.refused"):
    """A client connected and was cut at once: a limit was reached, or the sensor cannot keep evidence."""

    source_ip: str
    source_port: int
    reason: str
    suppressed: int = 0
    """Connections of the same network refused for the same reason since the event before, which were only counted."""


class ClientVersion(Event, frozen=True, kw_only=True, tag="connection.version"):
    """The client's identification string, such as `SSH-2.0-Go`."""

    version: str
    elapsed: float | None = None
    """Seconds since the connection opened."""


class ClientAlgorithms(Event, frozen=True, kw_only=True, tag="connection.algorithms"):
    """The algorithms the client offered in its first SSH_MSG_KEXINIT, in its order, and their HASSH.

    HASSH: MD5 of `kex;encryption;mac;compression`, client to server (https://github.com/salesforce/hassh). A `…_to_client` list
    is there where it differs from the one client to server.
    """

    hassh: str
    kex: list[str]
    host_key: list[str]
    encryption: list[str]
    mac: list[str]
    compression: list[str]
    languages: list[str]
    encryption_to_client: list[str] | None = None
    """Ciphers, server to client, where they differ."""
    mac_to_client: list[str] | None = None
    """Message authentication codes, server to client, where they differ."""
    compression_to_client: list[str] | None = None
    """Compression methods, server to client, where they differ."""
    languages_to_client: list[str] | None = None
    """Languages, server to client, where they differ."""
    first_kex_packet_follows: bool = False
    """The client has guessed the key exchange method and begun with it."""
    elapsed: float | None = None
    """Seconds since the connection opened."""


class ConnectionClosed(Event, frozen=True, kw_only=True, tag="connection.closed"):
    """The connection ended. `cause`: `client`, `lost`, `protocol-error`, `auth-failures`, `login-timeout`, `idle-timeout`,
    `session-timeout`, `limit` (which one, `limit.reached` says), `recording-failed`, `container-lost`, `journal-failed` or
    `shutdown`."""

    cause: str
    detail: str = ""
    duration: float
    """Seconds since it opened."""
    auth_attempts: int
    channels: int
    requests_dropped: int = 0
    """Repeated requests that were not written as events (`server.max_requests`)."""


# ---- authentication


class AuthAttempt(Event, frozen=True, kw_only=True, tag="auth.attempt"):
    """One authentication try, with its secret, and the verdict."""

    method: str
    username: str
    accepted: bool
    password: str | None = None
    new_password: str | None = None
    responses: list[str] | None = None
    """Answers to a keyboard-interactive challenge."""
    key_type: str | None = None
    key_fingerprint: str | None = None
    """`SHA256:…` of the public key offered."""
    key_fingerprint_md5: str | None = None
    """`MD5:…` of it, as older programs and lists have it."""
    key: str | None = None
    """The public key, base64."""
    key_signed: bool | None = None
    """The client proved that it holds the key; false: it only asked whether the key would do."""
    rule: str
    """What decided: `password`, `public-key`, `none`, `after-failures`, `probability`, `remembered`, or `denied`."""
    elapsed: float | None = None
    """Seconds since the connection opened."""


# ---- sessions


class SessionOpened(Event, frozen=True, kw_only=True, tag="session.opened"):
    """A client is in."""

    username: str
    source_ip: str
    source_port: int
    client_version: str


class SessionContainer(Event, frozen=True, kw_only=True, tag="session.container"):
    """The session was given its container."""

    container_id: str
    engine: str
    image: str
    waited: float
    """Seconds it waited."""


class SessionClosed(Event, frozen=True, kw_only=True, tag="session.closed"):
    """The session is over and its evidence is closed."""

    cause: str
    duration: float
    channels: int
    bytes_in: int
    bytes_out: int


class SessionRecovered(Event, frozen=True, kw_only=True, tag="session.recovered"):
    """A session was found in the recordings that a killed front had not come to state; what the recordings tell of it follows, as
    events of the usual kinds, with the time of now."""

    channels: int


class SessionTimeout(Event, frozen=True, kw_only=True, tag="session.timeout"):
    """A time limit was reached; the connection is being closed. `limit`: `login`, `idle` or `session`."""

    limit: str
    seconds: float


# ---- channels


class ChannelOpened(Event, frozen=True, kw_only=True, tag="channel.opened"):
    """A session channel was opened."""

    channel: int


class ChannelEnv(Event, frozen=True, kw_only=True, tag="channel.env"):
    """The client asked for an environment variable."""

    channel: int
    variable: str
    value: str
    accepted: bool


class ChannelPty(Event, frozen=True, kw_only=True, tag="channel.pty"):
    """The client asked for a terminal."""

    channel: int
    term: str
    width: int
    height: int


class ChannelStarted(Event, frozen=True, kw_only=True, tag="channel.started"):
    """A process runs for the channel. `kind`: `shell`, `exec` or `subsystem`."""

    channel: int
    kind: str
    command: str | None = None
    """The exec command, or the subsystem's name."""
    recording: str | None = None
    """The asciicast file, relative to the recordings' directory."""


class ChannelInput(Event, frozen=True, kw_only=True, tag="channel.input"):
    """A line typed into (or piped to) a shell, as far as editing keys let it be known; the recording has every byte."""

    channel: int
    line: str
    truncated: bool = False


class ChannelResize(Event, frozen=True, kw_only=True, tag="channel.resize"):
    """The client's window changed its size."""

    channel: int
    width: int
    height: int


class ChannelSignal(Event, frozen=True, kw_only=True, tag="channel.signal"):
    """The client sent a signal, or a break (`BREAK`)."""

    channel: int
    signal: str


class ChannelFailed(Event, frozen=True, kw_only=True, tag="channel.failed"):
    """What a channel asked for could not be done, or (without a channel) no more channel could be opened."""

    channel: int | None
    reason: str


class ChannelClosed(Event, frozen=True, kw_only=True, tag="channel.closed"):
    """The channel is closed."""

    channel: int
    exit_status: int | None = None
    exit_signal: str | None = None
    duration: float
    bytes_in: int
    bytes_out: int


class ForwardRequested(Event, frozen=True, kw_only=True, tag="forward.requested"):
    """The client asked for a forward. `kind`: `direct-tcpip`, `tcpip-forward`, `direct-streamlocal`, `streamlocal-forward`,
    `x11`, `agent` or `tun`."""

    kind: str
    host: str = ""
    port: int = 0
    origin_host: str = ""
    origin_port: int = 0
    path: str = ""
    accepted: bool
    forward: int | None = None
    """The number, counted from 1 within the connection, of a connection to elsewhere that was accepted: it leads to a sink."""


class ForwardData(Event, frozen=True, kw_only=True, tag="forward.data"):
    """Bytes that went over a forward in one direction: the next of its first ones, which are kept (`forwards.max_kept`)."""

    forward: int
    """Its number in the connection."""
    direction: str
    """`in`: from the client; `out`: what Hermes answered."""
    data: str
    """The bytes, as text; where they are not UTF-8, bad ones as `\\xNN` and each backslash doubled."""
    size: int
    """How many bytes these are."""
    offset: int = 0
    """Bytes that went before it in this direction."""
    protocol: str = ""
    """What it looks like: `http`, `smtp`, `pop3`, `imap`, `tls`, `ssh`, or empty."""


class ForwardTLS(Event, frozen=True, kw_only=True, tag="forward.tls"):
    """A TLS ClientHello came over a forward."""

    forward: int
    """Its number in the connection."""
    ja4: str
    """JA4 fingerprint (https://github.com/FoxIO-LLC/ja4)."""
    server_name: str = ""
    """The server that the client wants (SNI)."""
    alpn: list[str] = []
    """Protocols that the client offered, in its order (ALPN)."""


class ForwardLogin(Event, frozen=True, kw_only=True, tag="forward.login"):
    """A client logged in to what it took for a server at the far end of a forward. It was let in."""

    forward: int
    """Its number in the connection."""
    protocol: str
    """`smtp`, `pop3`, `imap` or `http`."""
    method: str
    """`LOGIN`, `PLAIN` or `USER` (mail), `Basic` or `Proxy-Basic` (HTTP)."""
    username: str
    """The user name it gave there."""
    password: str
    """The password it gave there."""


class ForwardClosed(Event, frozen=True, kw_only=True, tag="forward.closed"):
    """A forward that had been accepted is closed."""

    forward: int
    """Its number in the connection."""
    protocol: str = ""
    """What was spoken last: `http`, `smtp`, `pop3`, `imap`, `tls`, `ssh`, or empty."""
    duration: float
    """Seconds since it was accepted."""
    bytes_in: int
    """Bytes the client sent over it."""
    bytes_out: int
    """Bytes it was sent."""


class GlobalRequest(Event, frozen=True, kw_only=True, tag="connection.request"):
    """The client sent another global request (`keepalive@openssh.com`, `no-more-sessions@openssh.com`, …)."""

    request: str


# ---- what runs in a container


class ProcessStarted(Event, frozen=True, kw_only=True, tag="process.started"):
    """A process in a container executed a program, or tried to. The numbers are those of the container's own pid namespace."""

    container_id: str
    channel: int | None = None
    """The channel whose process it descends from."""
    pid: int
    """Its number."""
    parent: int
    """Number of its parent at that moment; 0 when that is outside of the container."""
    uid: int
    """Its effective user."""
    gid: int
    """Its effective group."""
    program: str
    """The path as it was given to the kernel; `/proc/self/fd/N` for an open file without a path."""
    argv: list[str]
    """Its arguments, the name it is called by first, as they were a moment before the kernel read them."""
    truncated: bool = False
    """Arguments were longer, or more, than what is kept."""
    cwd: str
    """Its working directory."""
    error: str | None = None
    """Why it could not be executed, such as `ENOENT` (`unknown`: it was not, or that cannot be told); the process went on as it
    was."""


class ProcessExited(Event, frozen=True, kw_only=True, tag="process.exited"):
    """A process that had executed a program ended. Neither status nor signal: the kernel did not tell (before Linux 6.15)."""

    container_id: str
    channel: int | None = None
    """As in its `process.started`."""
    pid: int
    """Its number."""
    status: int | None = None
    """Its exit status."""
    signal: str | None = None
    """The signal that ended it, without `SIG`."""
    duration: float
    """Seconds since it executed its (last) program."""


class NetworkAttempted(Event, frozen=True, kw_only=True, tag="network.attempted"):
    """A process in a container asked for a connection, an address, or to send to one."""

    container_id: str
    channel: int | None = None
    """As in `process.started`."""
    pid: int
    """The process's number."""
    call: str
    """`connect`, `bind`, `sendto`, `sendmsg` or `sendmmsg`."""
    family: str
    """`inet`, `inet6`, `unix`, `netlink` or a number."""
    protocol: str
    """`tcp`, `udp`, `raw`, `stream`, `dgram`, …"""
    address: str
    """The address; a path, or `@` and the name, of a unix socket; otherwise its bytes in hexadecimal."""
    port: int = 0
    """The port, where there is one."""
    outcome: str
    """As the container's network foretells it: `connected`, `bound`, `sent`, an error such as `ENETUNREACH`, `pending` (it leaves
    the container), or `unknown`."""
    repeated: int = 0
    """Further attempts of the same kind since the event before, which were only counted."""


# ---- files


class FileWritten(Event, frozen=True, kw_only=True, tag="file.written"):
    """A file in a container was written and closed; or came as the input of a channel's command (`path` empty)."""

    container_id: str
    channel: int | None = None
    pid: int | None = None
    """Who closed it, by its number in the container; null: that had ended, or was outside."""
    path: str
    size: int
    mode: int = 0
    """Its permission bits."""
    sha256: str | None = None
    """The artifact that holds what it was then; None: it was not kept."""
    skipped: str | None = None
    """Why it was not kept, such as `larger than artifacts.file_bytes`."""
    repeated: int = 0
    """Further times that it was written and closed before it was looked at, as far as the kernel told of each."""


class FileExecuted(Event, frozen=True, kw_only=True, tag="file.executed"):
    """A file that is not the image's, or was changed since the container began, was executed: once for each state of the file."""

    container_id: str
    channel: int | None = None
    pid: int | None = None
    """The process, by its number in the container."""
    path: str
    """Its path in the container; `/memfd:NAME` for one that never had any, `?` for one too long to be told."""
    size: int
    sha256: str | None = None
    """The artifact that holds it; null: it was not kept."""
    deleted: bool = False
    """It had no name any more, or never had one (memfd)."""
    skipped: str | None = None
    """Why it was not kept."""


class FileChanged(Event, frozen=True, kw_only=True, tag="file.changed"):
    """What a session had changed in its container, by its end: one file or directory that differs from the image's."""

    container_id: str
    change: str
    """`added`, `changed` or `deleted`."""
    kind: str
    """`file`, `directory`, `symlink`, `fifo`, `socket` or `device`; empty for what was deleted."""
    path: str
    """Its path in the container."""
    mode: int = 0
    """Its permission bits."""
    uid: int = 0
    """Its owner, as the container knows it."""
    gid: int = 0
    """Its group, likewise."""
    size: int = 0
    sha256: str | None = None
    """The artifact that holds a file; null: it was not kept."""
    target: str | None = None
    """Where a symlink leads."""
    skipped: str | None = None
    """Why the content of a file was not kept, or not all of it."""


class ArtifactStored(Event, frozen=True, kw_only=True, tag="artifact.stored"):
    """A session brought or made a file whose content is kept; once for each session and content."""

    container_id: str
    channel: int | None = None
    sha256: str
    """By which it is kept."""
    sha1: str
    """Its SHA-1."""
    md5: str
    """Its MD5."""
    size: int
    path: str
    """The name it had when it was first seen in this session."""
    source: str
    """`written`, `executed`, `input` (of a channel's command) or `left` (found at the end)."""
    known: bool
    """It was kept already, from an earlier session. Never so of `input`, which each channel's recording keeps for itself."""


# ---- evidence


class RecordingFailed(Event, frozen=True, kw_only=True, tag="recording.failed"):
    """A recording could not be written; its session was ended."""

    channel: int | None = None
    reason: str


class JournalRecovered(Event, frozen=True, kw_only=True, tag="journal.recovered"):
    """The journal could not be written for a while; nothing that was stated in between is lost."""

    reason: str
    seconds: float
    waiting: int
    """Events that waited."""


class JournalDamaged(Event, frozen=True, kw_only=True, tag="journal.damaged"):
    """The journal was found damaged at start; it was kept aside and a new one begun."""

    kept: str
    reason: str


class SessionSealed(Event, frozen=True, kw_only=True, tag="session.sealed"):
    """A session's evidence is complete and its manifest is made; each names the one before, so that a gap or a change shows."""

    sequence: int
    """1 for the first of this sensor."""
    manifest: str
    """SHA-256 of the manifest."""
    previous: str
    """SHA-256 of the manifest before; empty for the first."""
    through: int
    """Id of the newest event that the manifest covers."""
    files: int
    """Files of recordings it names."""
    events: int
    """Events of the session and its connection that it covers."""


class EvidenceRemoved(Event, frozen=True, kw_only=True, tag="evidence.removed"):
    """Evidence was removed to hold a limit. `what`: `recording` (a session's, of one day), `journal` (connections with all their
    events), `lines` (a full file of JSON lines, all of which the journal has or had), `artifact` (the content of a file) or
    `manifests` (the oldest of the chain)."""

    what: str
    path: str = ""
    """Where it was: `DAY/SESSION` of a recording, the name of a file of lines, the SHA-256 of an artifact, the numbers of
    manifests (`1-500`)."""
    reason: str
    """The setting, such as `evidence.max_age`."""
    bytes: int
    """What it took."""
    connections: int = 0
    """Connections removed from the journal."""
    events: int = 0
    """Events removed from the journal."""
    ids: str = ""
    """The ids they had, such as `1-30,45`; many are told by several events, of which the first has the numbers."""


class EvidenceResumed(Event, frozen=True, kw_only=True, tag="evidence.resumed"):
    """There is room for evidence again (`evidence.min_free`), and new connections are taken."""

    seconds: float
    """How long none was taken."""
    free: int
    """Bytes free now."""


# ---- sensor, pool and engine


class ClockSet(Event, frozen=True, kw_only=True, tag="clock.set"):
    """The machine's clock was set, or the machine slept, between the events before and after this one. Their ids tell the order;
    `hermes sessions timeline` shows a session by one clock all the same."""

    seconds: float
    """By how much; negative: back."""


class SensorStarted(Event, frozen=True, kw_only=True, tag="sensor.started"):
    """This sensor listens."""

    version: str
    addresses: list[str]
    engine: str
    image: str


class SensorStopped(Event, frozen=True, kw_only=True, tag="sensor.stopped"):
    """This sensor stopped in good order."""

    reason: str


class SensorRecovered(Event, frozen=True, kw_only=True, tag="sensor.recovered"):
    """A process of this sensor's died and was started afresh: the front, and all connections were lost, or the broker, and all
    containers were lost (what they had changed is kept)."""

    process: str
    """`front` or `broker`."""
    reason: str


class SensorReloaded(Event, frozen=True, kw_only=True, tag="sensor.reloaded"):
    """The operator had the settings read again (SIGHUP)."""

    changed: list[str]
    """Settings that are in effect from now on, for whoever comes."""
    ignored: list[str]
    """Settings that were changed and wait for a restart."""


class SensorVerified(Event, frozen=True, kw_only=True, tag="sensor.verified"):
    """Hermes attacked a box of its own and nothing got through; only then does it listen."""

    probes: int
    """Attacks that were made."""
    seconds: float
    engine: str
    image: str
    policy: str
    """Fingerprint of the policy that held: capabilities, system calls, limits, what is hidden."""
    kernel: str
    """Release of the kernel it was true for."""


class PoolReady(Event, frozen=True, kw_only=True, tag="pool.ready"):
    """The pool holds its full number of warm containers for the first time."""

    size: int
    seconds: float


class PoolExhausted(Event, frozen=True, kw_only=True, tag="pool.exhausted"):
    """A session could not be given a container."""

    reason: str
    active: int
    warm: int


class ContainerCreated(Event, frozen=True, kw_only=True, tag="container.created"):
    """A warm container was added to the pool."""

    container_id: str
    engine: str
    seconds: float


class ContainerStopped(Event, frozen=True, kw_only=True, tag="container.stopped"):
    """A session's container was stopped. `kept` is the directory of its changed files, if they were kept."""

    container_id: str
    kept: str | None = None
    recovered: bool = False
    """The broker that had given it out died; this was done at the next start."""


class ContainerLost(Event, frozen=True, kw_only=True, tag="container.lost"):
    """A container's init ended by itself, was killed by what ran in it, or had to be ended while a session had it."""

    container_id: str
    reason: str | None = None
    """Why it had to be ended, such as that its watcher died; None when it ended by itself."""


class ContainerDiscarded(Event, frozen=True, kw_only=True, tag="container.discarded"):
    """A kept container was removed: `count`, `age` or `bytes` of `container_pool.forensics`."""

    container_id: str
    reason: str
    bytes: int


class LimitReached(Event, frozen=True, kw_only=True, tag="limit.reached"):
    """A limit of the configuration was reached, and held. `limit` is the setting, such as `container_pool.max_active`."""

    limit: str
    value: float
    """What the setting is."""
    source_ip: str | None = None
    container_id: str | None = None
    channel: int | None = None
    detail: str = ""
    """What was refused, cut or removed."""
    suppressed: int = 0
    """Times it was reached since the event before, which were only counted."""


class EngineFailed(Event, frozen=True, kw_only=True, tag="engine.failed"):
    """The engine could not create, open or remove a container."""

    engine: str
    operation: str
    reason: str


def _catalogue() -> dict[str, type[Event]]:
    return {kind.tag(): kind for kind in Event.__subclasses__()}


ALL: dict[str, type[Event]] = _catalogue()
"""Every event by its name."""
