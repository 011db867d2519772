"""Every setting there is: its name, type, limits, default and meaning. `docs/reference/configuration.md` is made from this."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from hermes.config.analysis import AnalysisConfig
from hermes.config.artifacts import ArtifactsConfig
from hermes.config.forwards import ForwardsConfig
from hermes.config.geo import GeoConfig
from hermes.config.keeping import EvidenceConfig, RecordingConfig
from hermes.config.outputs import AlertsConfig, AnyOutput, output_conflicts
from hermes.config.section import Conflict, Section, repeated
from hermes.config.values import (
    Address,
    Bytes,
    Capability,
    DataPath,
    DockerHost,
    EventsTarget,
    FilePath,
    Image,
    MaxStartups,
    Means,
    MetricsAddress,
    Network,
    Password,
    PublicKey,
    Seconds,
    SystemUser,
    User,
    parse_endpoint,
)
from hermes.config.watch import WatchConfig

DEFAULT_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT",
    "AUDIT_WRITE", "NET_RAW",
)  # fmt: skip


class SensorConfig(Section):
    """Who this sensor is."""

    name: Annotated[str, Means("1 to 64 letters, digits, '.', '_' or '-'")] = Field(
        default="hermes", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$"
    )
    """Name of this sensor; it stands in every event."""
    user: SystemUser = "hermes"
    """System user that the front runs as. Must exist (`scripts/setup` makes it) and must not be root."""


class PerAddressConfig(Section):
    """What one address may have; 0 is no limit. One more connection is turned away as by an overloaded sshd."""

    startups: int = Field(default=9, ge=0)
    """Connections at once that are not authenticated (sshd's `PerSourceMaxStartups`). Fewer than `server.max_startups` begins
    to drop at, so that one source costs no other a connection."""
    connections: int = Field(default=50, ge=0)
    """Connections at once, authenticated or not."""
    connections_per_minute: int = Field(default=600, ge=0)
    """New connections a minute; as many may come at once after a pause. A client that guesses passwords gets
    `server.max_auth_tries` of them a connection."""
    sessions: int = Field(default=20, ge=0)
    """Sessions at once; one more is closed as soon as it is authenticated."""


class PerNetworkConfig(Section):
    """What all addresses of one network may have together; 0 is no limit."""

    ipv4_prefix: int = Field(default=24, ge=8, le=32)
    """Leading bits of an IPv4 address that make its network."""
    ipv6_prefix: int = Field(default=48, ge=16, le=128)
    """Leading bits of an IPv6 address that make its network."""
    startups: int = Field(default=9, ge=0)
    """Connections at once that are not authenticated (sshd's `PerSourceMaxStartups` and `PerSourceNetBlockSize`)."""
    connections: int = Field(default=200, ge=0)
    """Connections at once, authenticated or not."""
    connections_per_minute: int = Field(default=1800, ge=0)
    """New connections a minute; as many may come at once after a pause."""
    sessions: int = Field(default=50, ge=0)
    """Sessions at once; one more is closed as soon as it is authenticated."""


class ServerConfig(Section):
    """What an attacker connects to."""

    addresses: tuple[Address, ...] = Field(default=("127.0.0.1",), min_length=1)
    """Addresses to listen on: `0.0.0.0`, `"::"`, `192.0.2.1`, or with a port of their own `192.0.2.1:2022`, `"[::]:22"`
    (YAML wants quotes around what begins with `:` or `[`)."""
    port: int = Field(default=2222, ge=1, le=65535)
    """Port for each address that names none."""
    proxy_protocol: bool = False
    """Expect a PROXY protocol v1 or v2 header before SSH on every connection (behind HAProxy and the like)."""
    version: Annotated[str, Means("1 to 201 printable ASCII characters, no space in front")] = Field(
        default="OpenSSH_9.2p1 Debian-2+deb12u10", pattern=r"^[\x21-\x7e][\x20-\x7e]{0,200}$"
    )
    """Software version in the identification string, after `SSH-2.0-`."""
    banner: str | None = Field(default=None, max_length=65536)
    """Text sent before authentication (sshd's `Banner`); none by default."""
    login_timeout: Seconds = 120
    """Seconds a client has to authenticate (sshd's `LoginGraceTime`); 0 for no limit."""
    idle_timeout: Seconds = 600
    """Seconds without a byte in either direction after which a session ends; 0 for no limit."""
    session_timeout: Seconds = 3600
    """Seconds after which a session ends whatever it does; 0 for no limit."""
    shutdown_grace: Seconds = 10
    """Seconds that sessions may go on after SIGTERM, while nobody new is let in; a second signal, or Ctrl-C, cuts them short."""
    max_auth_tries: int = Field(default=6, ge=1, le=1000)
    """Failed authentication tries after which the connection is cut (sshd's `MaxAuthTries`)."""
    max_startups: MaxStartups = "10:30:100"
    """Connections at once that are not authenticated (sshd's `MaxStartups`): from the first number on, the second is the
    percentage of new ones dropped at random, rising until at the third all are."""
    max_connections: int = Field(default=1000, ge=1)
    """Connections at once, authenticated or not; one more is closed at once, as by an overloaded sshd."""
    max_sessions: int = Field(default=500, ge=1)
    """Sessions at once; one more is closed as soon as it is authenticated."""
    max_channels: int = Field(default=10, ge=1)
    """Session channels open at once in one connection (sshd's `MaxSessions`)."""
    max_session_channels: int = Field(default=1000, ge=1)
    """Session channels that one connection may open, one after the other."""
    max_channel_requests: int = Field(default=10_000, ge=10)
    """Requests on one channel (environment, terminal, window changes, signals); past it each one fails, without effect."""
    max_requests: int = Field(default=10_000, ge=100)
    """Events that one connection may write to the journal for requests it can repeat for free (environment, window
    changes, signals, forwards, input lines); past it they are only counted."""
    max_forwards: int = Field(default=100, ge=0)
    """Forwarded ports and sockets that one connection may believe it listens on."""
    max_unread: Bytes = Field(default=16 * 1024 * 1024, ge=1024 * 1024)
    """Bytes that wait for a client to read them, answers included; past it the client is cut off. What a channel's process
    writes never comes to that: it is made to wait."""
    max_deferred: int = Field(default=1000, ge=100)
    """Packets that wait for a client to finish a key exchange; past it the client is cut off."""
    max_inflated: Bytes = Field(default=256 * 1024, ge=64 * 1024)
    """Bytes that one compressed packet may hold; past it the client is cut off."""
    max_environment: Bytes = 32 * 1024
    """Bytes of environment variables that one channel may set; more are refused."""
    max_sources: int = Field(default=100_000, ge=1)
    """Addresses, and as many networks, whose new connections a minute are remembered though none is connected; the least
    recently seen are forgotten first."""
    limit_interval: Seconds = 10
    """Seconds for which a limit that is reached again by the same network is only counted; then `limit.reached` says how
    often. 0: state it each time."""
    exempt: tuple[Network, ...] = ("127.0.0.0/8", "::1/128")
    """Addresses and networks without limits of their own (`server.per_address`, `server.per_network`): yours, or a proxy's."""
    per_address: PerAddressConfig = PerAddressConfig()
    per_network: PerNetworkConfig = PerNetworkConfig()

    @property
    def endpoints(self) -> tuple[tuple[str, int], ...]:
        """Where to listen: host and port of each address."""
        return tuple(parse_endpoint(address, self.port) for address in self.addresses)

    def conflicts(self) -> Iterable[Conflict]:
        key = ("server.addresses", "server.port")
        endpoints = self.endpoints
        for twice in repeated(f"{host} port {port}" for host, port in endpoints):
            yield Conflict(key, f"{twice} is there more than once")
        for host, port in dict.fromkeys(endpoints):
            everywhere = "::" if ":" in host else "0.0.0.0"
            if host != everywhere and (everywhere, port) in endpoints and host[:1].isdigit() | (":" in host):
                yield Conflict(key, f"{everywhere} port {port} already takes in {host}")


class AuthenticationConfig(Section):
    """Who gets in. Every try is recorded with its secret, whatever is decided."""

    methods: tuple[Literal["publickey", "password", "keyboard-interactive"], ...] = ("publickey", "password")
    """Methods offered, as sshd lists them."""
    passwords: dict[User, Annotated[tuple[Password, ...], Field(min_length=1)]] = Field(default={"root": ("root",)})
    """Passwords by user name. The user `*` stands for any user, the password `*` for any password."""
    public_keys: dict[User, Annotated[tuple[PublicKey, ...], Field(min_length=1)]] = Field(default={})
    """OpenSSH public keys (`ssh-ed25519 AAAA…`) by user name that are let in; the user `*` stands for any user."""
    accept_none: tuple[User, ...] = ()
    """Users let in without any credential (method `none`); `*` stands for any user."""
    accept_after_failures: int = Field(default=0, ge=0)
    """Accept the first password tried after this many failed ones from the same address; 0: never."""
    accept_probability: float = Field(default=0.0, ge=0, le=1)
    """Chance that a password which no other rule accepts is accepted. The verdict on an address, user and password is
    remembered, so that the same try gets the same answer."""
    remember: int = Field(default=100_000, ge=1)
    """Source addresses whose failures and verdicts are remembered; the least recently seen are forgotten first."""

    def conflicts(self) -> Iterable[Conflict]:
        for twice in repeated(self.methods):
            yield Conflict(("authentication.methods",), f"{twice} is there more than once")
        if not {"password", "keyboard-interactive"} & set(self.methods):
            for name, value in (
                ("accept_after_failures", self.accept_after_failures),
                ("accept_probability", self.accept_probability),
            ):
                if value:
                    reason = (
                        "needs 'password' or 'keyboard-interactive' in authentication.methods, or no client can try a password"
                    )
                    yield Conflict((f"authentication.{name}", "authentication.methods"), reason)
        if not self.methods and not self.accept_none:
            keys = ("authentication.methods", "authentication.accept_none")
            yield Conflict(keys, "offers nothing, and authentication.accept_none lets no one in either: no client could even try")


class SecurityConfig(Section):
    """What an attacker who is root in a container may do."""

    capabilities: tuple[Capability, ...] = DEFAULT_CAPABILITIES
    """Capabilities kept in the container, without `CAP_`. Anything that reaches outside it is refused."""
    seccomp_profile: FilePath | None = None
    """A seccomp profile in OCI/Docker JSON to use instead of the built-in one."""
    no_new_privileges: bool = True
    """Forbid gaining privileges by setuid files (`sudo`, `su` then fail for ordinary users)."""


class LimitsConfig(Section):
    """What one container may use."""

    memory: Bytes = Field(default=256 * 1024 * 1024, ge=16 * 1024 * 1024)
    """Bytes of memory; past it the kernel kills inside the container."""
    pids: int = Field(default=256, ge=16, le=4_194_304)
    """Processes and threads."""
    cpus: float = Field(default=1.0, ge=0.01, le=4096)
    """CPUs' worth of time (quota over a 100 ms period; below 1.0 the prompt stutters)."""
    cpu_burst: float = Field(default=1.0, ge=0, le=4096)
    """CPUs' worth of time that was not used before and may be used on top within one period, at most `cpus`; keeps the prompt of
    an idle container quick."""
    cpu_weight: int = Field(default=100, ge=1, le=10_000)
    """Share of the CPU that a container gets where all want it; 100 is what everything else on the machine has."""
    open_files: int = Field(default=1024, ge=64, le=1_048_576)
    """Open files a process (RLIMIT_NOFILE)."""
    file_size: Bytes = Field(default=512 * 1024 * 1024, ge=1024 * 1024)
    """Largest file a process can write, in bytes (RLIMIT_FSIZE)."""
    disk: Bytes = Field(default=1024**3, ge=16 * 1024**2, le=100 * 1024**3)
    """Bytes that everything the container changes on its disk may take; past it the disk is full."""
    inodes: int = Field(default=65_536, ge=1024, le=16_777_216)
    """Files, directories and links that it may make on its disk."""
    host_free: Bytes = 1024**3
    """Bytes to keep free on the host's file system of containers' disks (`local` engine): with less, the container that takes
    most of it is stopped. 0 for none."""
    lifetime: Seconds = 7200
    """Seconds a session may hold a container, whatever it does; then the container is stopped. 0 for no limit."""
    disk_backing: Literal["ext4", "tmpfs"] = "ext4"
    """Where that disk is (`local` engine): `ext4`, in a sparse file under `data_dir` that shows as a disk of ordinary size, most
    of it full, or `tmpfs`, in memory that counts as the container's; then `limits.disk` must be less than `limits.memory`."""

    def conflicts(self) -> Iterable[Conflict]:
        if self.disk_backing == "tmpfs" and self.disk >= self.memory:
            keys = ("container_pool.limits.disk", "container_pool.limits.memory", "container_pool.limits.disk_backing")
            yield Conflict(keys, "a tmpfs counts as the container's memory, so the disk must be smaller than that")


class ForensicsConfig(Section):
    """How many stopped containers' file changes are kept, and for how long. Oldest go first."""

    count: int = Field(default=20, ge=0)
    """Stopped containers kept at most; 0 keeps none."""
    max_age: Seconds = 7 * 86400
    """Seconds a stopped container is kept at most."""
    max_bytes: Bytes = 2 * 1024**3
    """Bytes of all kept containers together, at most."""
    box_bytes: Bytes = Field(default=512 * 1024**2, ge=1024 * 1024)
    """Bytes copied of one container's changed files, at most; what is cut short or missing is noted."""
    box_entries: int = Field(default=100_000, ge=100, le=10_000_000)
    """Files and directories looked at in one container, at most."""
    box_depth: int = Field(default=128, ge=8, le=256)
    """Directories within each other that are entered, at most."""
    box_seconds: Seconds = Field(default=20, gt=0)
    """Seconds that keeping one container's changes may take."""


class DockerConfig(Section):
    """The `docker` engine only."""

    host: DockerHost = "unix:///var/run/docker.sock"
    """Docker Engine API: `unix:///path` or `tcp://host:port`."""
    entry: Literal["auto", "spawner", "api"] = "auto"
    """How processes enter a container: `spawner` (fast, local daemon), `api` (Docker's exec), or `auto`: the best that works."""


class ContainerPoolConfig(Section):
    """Where attackers stand."""

    engine: Literal["local", "docker"] = "local"
    """`local` (an OCI runtime, no daemon) or `docker`."""
    runtime: Literal["auto", "runc", "crun", "runsc"] = "auto"
    """OCI runtime that makes containers. `auto`: with the `local` engine crun where it runs, else runc; with `docker` the
    daemon's default. `runsc` is gVisor, the strictest: a kernel of its own for each container, slower and easy to recognise."""
    image: Image = "debian-12"
    """A target image of `images/`, built on first use; with the `docker` engine also the name of any Docker image."""
    hostname: Annotated[str, Means("1 to 63 lower-case letters, digits or '-', no '-' first or last")] = Field(
        default="srv01", max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
    )
    """Host name inside the container."""
    size: int = Field(default=3, ge=1, le=1000)
    """Containers kept warm."""
    max_active: int = Field(default=100, ge=1, le=10_000)
    """Containers held by sessions at once; one more session is refused."""
    concurrency: int = Field(default=2, ge=1, le=32)
    """Containers created at the same time."""
    allocation_timeout: Seconds = Field(default=10, gt=0)
    """Seconds a session waits for a container when none is warm."""
    create_timeout: Seconds = Field(default=30, gt=0)
    """Seconds after which the creation of a container counts as failed."""
    security: SecurityConfig = SecurityConfig()
    limits: LimitsConfig = LimitsConfig()
    forensics: ForensicsConfig = ForensicsConfig()
    watch: WatchConfig = WatchConfig()
    docker: DockerConfig = DockerConfig()

    def conflicts(self) -> Iterable[Conflict]:
        if self.engine == "docker" and self.runtime == "runsc" and self.docker.entry == "spawner":
            keys = ("container_pool.docker.entry", "container_pool.runtime")
            yield Conflict(keys, "no spawner can enter a container of runsc: use auto or api")


class LoggingConfig(Section):
    """What Hermes says of itself (log, on standard error) and of its attackers (events, as JSON lines)."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log message shown."""
    format: Literal["console", "json"] = "console"
    """Form of the log."""
    events: EventsTarget = "events.jsonl"
    """Events as JSON lines besides the journal: `stdout`, `off`, or a file (relative to the journal's directory)."""


class MetricsConfig(Section):
    """What a monitoring system may ask (`docs/reference/metrics.md`)."""

    address: MetricsAddress = "off"
    """Where metrics and health are served over HTTP: `127.0.0.1:9222`, `"[::1]:9222"`, or a unix socket's absolute path, in
    a directory that `sensor.user` may write in. They tell about attackers and sensor: loopback only."""


class Settings(Section):
    """All settings of one sensor."""

    sensor: SensorConfig = SensorConfig()
    server: ServerConfig = ServerConfig()
    authentication: AuthenticationConfig = AuthenticationConfig()
    forwards: ForwardsConfig = ForwardsConfig()
    container_pool: ContainerPoolConfig = ContainerPoolConfig()
    recording: RecordingConfig = RecordingConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    artifacts: ArtifactsConfig = ArtifactsConfig()
    analysis: AnalysisConfig = AnalysisConfig()
    logging: LoggingConfig = LoggingConfig()
    metrics: MetricsConfig = MetricsConfig()
    geo: GeoConfig = GeoConfig()
    alerts: AlertsConfig = AlertsConfig()
    outputs: tuple[AnyOutput, ...] = ()
    """Where events go besides the journal: a list; what each can have, [Outputs](#outputs) says."""
    data_dir: DataPath = Path("/var/lib/hermes")
    """Where everything is kept: journal, recordings, host keys, images, stopped containers."""

    def conflicts(self) -> Iterable[Conflict]:
        return output_conflicts(self.outputs, self.alerts)

    @property
    def recordings_dir(self) -> Path:
        """Where recordings go, resolved."""
        return self.recording.output_dir or self.data_dir / "recordings"

    @property
    def journal_dir(self) -> Path:
        """Where the journal is: the front's own directory, for `data_dir` itself belongs to root."""
        return self.data_dir / "journal"

    @property
    def journal_path(self) -> Path:
        """The journal."""
        return self.journal_dir / "journal.db"

    @property
    def keys_dir(self) -> Path:
        """Where the host keys are kept."""
        return self.data_dir / "keys"

    @property
    def geo_dir(self) -> Path:
        """Where `hermes geo update` puts databases."""
        return self.data_dir / "geo"

    @property
    def index_dir(self) -> Path:
        """Where what is derived from the journal is kept: the analyst's own directory."""
        return self.data_dir / "index"

    @property
    def index_path(self) -> Path:
        """The index."""
        return self.index_dir / "index.db"

    @property
    def outputs_dir(self) -> Path:
        """Where outputs keep how far they came."""
        return self.data_dir / "outputs"

    @property
    def artifacts_dir(self) -> Path:
        """Where the content of attackers' files is kept."""
        return self.data_dir / "artifacts"
