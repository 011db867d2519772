"""Every setting there is: its name, type, limits, default and meaning. `docs/reference/configuration.md` is made from this."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]

DEFAULT_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT",
    "AUDIT_WRITE", "NET_RAW",
)  # fmt: skip


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SensorConfig(_Section):
    """Who this sensor is."""

    name: str = Field(default="hermes", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of this sensor; it stands in every event."""
    user: str = Field(default="hermes", min_length=1)
    """System user that the front runs as. Must exist (`scripts/setup` makes it) and must not be root."""


class ServerConfig(_Section):
    """What an attacker connects to."""

    addresses: tuple[str, ...] = Field(default=("127.0.0.1",), min_length=1)
    """Addresses to listen on: `0.0.0.0`, `::`, `192.0.2.1`, or with a port of their own `192.0.2.1:2022`, `[::]:22`."""
    port: int = Field(default=2222, ge=1, le=65535)
    """Port for each address that names none."""
    proxy_protocol: bool = False
    """Expect a PROXY protocol v1 or v2 header before SSH on every connection (behind HAProxy and the like)."""
    version: str = Field(default="OpenSSH_9.2p1 Debian-2+deb12u7", pattern=r"^[\x21-\x7e][\x20-\x7e]{0,200}$")
    """Software version in the identification string, after `SSH-2.0-`."""
    banner: str | None = Field(default=None, max_length=65536)
    """Text sent before authentication (sshd's `Banner`); none by default."""
    login_timeout: Seconds = 120
    """Seconds a client has to authenticate (sshd's `LoginGraceTime`); 0 for no limit."""
    idle_timeout: Seconds = 600
    """Seconds without a byte in either direction after which a session ends; 0 for no limit."""
    session_timeout: Seconds = 3600
    """Seconds after which a session ends whatever it does; 0 for no limit."""
    max_auth_tries: int = Field(default=6, ge=1, le=1000)
    """Failed authentication tries after which the connection is cut (sshd's `MaxAuthTries`)."""
    max_connections: int = Field(default=1000, ge=1)
    """Connections at once, authenticated or not; one more is closed at once, as by an overloaded sshd."""
    max_channels: int = Field(default=10, ge=1)
    """Session channels open at once in one connection (sshd's `MaxSessions`)."""
    max_requests: int = Field(default=10_000, ge=100)
    """Events that one connection may write to the journal for requests it can repeat for free (environment, window
    changes, signals, forwards, input lines); past it they are only counted."""


class AuthenticationConfig(_Section):
    """Who gets in. Every try is recorded with its secret, whatever is decided."""

    methods: tuple[Literal["publickey", "password", "keyboard-interactive"], ...] = ("publickey", "password")
    """Methods offered, as sshd lists them."""
    passwords: dict[str, tuple[str, ...]] = Field(default={"root": ("root",)})
    """Passwords by user name. The user `*` stands for any user, the password `*` for any password."""
    public_keys: dict[str, tuple[str, ...]] = Field(default={})
    """OpenSSH public keys (`ssh-ed25519 AAAA…`) by user name that are let in; the user `*` stands for any user."""
    accept_none: tuple[str, ...] = ()
    """Users let in without any credential (method `none`); `*` stands for any user."""
    accept_after_failures: int = Field(default=0, ge=0)
    """Accept the first password tried after this many failed ones from the same address; 0: never."""
    accept_probability: float = Field(default=0.0, ge=0, le=1)
    """Chance that a password which no other rule accepts is accepted. The verdict on an address, user and password is
    remembered, so that the same try gets the same answer."""
    remember: int = Field(default=100_000, ge=1)
    """Source addresses whose failures and verdicts are remembered; the least recently seen are forgotten first."""


class SecurityConfig(_Section):
    """What an attacker who is root in a container may do."""

    capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
    """Capabilities kept in the container, without `CAP_`. Anything that reaches outside it is refused."""
    seccomp_profile: Path | None = None
    """A seccomp profile in OCI/Docker JSON to use instead of the built-in one."""
    no_new_privileges: bool = True
    """Forbid gaining privileges by setuid files (`sudo`, `su` then fail for ordinary users)."""


class LimitsConfig(_Section):
    """What one container may use."""

    memory: Bytes = Field(default=256 * 1024 * 1024, ge=16 * 1024 * 1024)
    """Bytes of memory; past it the kernel kills inside the container."""
    pids: int = Field(default=256, ge=16)
    """Processes and threads."""
    cpus: float = Field(default=1.0, gt=0)
    """CPUs' worth of time (quota over a 100 ms period; below 1.0 the prompt stutters)."""
    open_files: int = Field(default=1024, ge=64)
    """Open files a process (RLIMIT_NOFILE)."""
    file_size: Bytes = Field(default=512 * 1024 * 1024, ge=1024 * 1024)
    """Largest file a process can write, in bytes (RLIMIT_FSIZE)."""


class ForensicsConfig(_Section):
    """How many stopped containers' file changes are kept, and for how long. Oldest go first."""

    count: int = Field(default=20, ge=0)
    """Stopped containers kept at most; 0 keeps none."""
    max_age: Seconds = 7 * 86400
    """Seconds a stopped container is kept at most."""
    max_bytes: Bytes = 2 * 1024**3
    """Bytes of all kept containers together, at most."""


class DockerConfig(_Section):
    """The `docker` engine only."""

    host: str = "unix:///var/run/docker.sock"
    """Docker Engine API: `unix:///path` or `tcp://host:port`."""
    entry: Literal["auto", "spawner", "api"] = "auto"
    """How processes enter a container: `spawner` (fast, local daemon), `api` (Docker's exec), or `auto`: the best that works."""


class ContainerPoolConfig(_Section):
    """Where attackers stand."""

    engine: Literal["local", "docker"] = "local"
    """`local` (runc or crun, no daemon) or `docker`."""
    runtime: Literal["auto", "runc", "crun"] = "auto"
    """OCI runtime of the `local` engine; `auto` takes crun where it runs, else runc."""
    image: str = Field(default="debian-12", min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")
    """A target image of `images/`, built on first use; with the `docker` engine also the name of any Docker image."""
    hostname: str = Field(default="srv01", max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """Host name inside the container."""
    size: int = Field(default=3, ge=1, le=1000)
    """Containers kept warm."""
    max_active: int = Field(default=100, ge=1)
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
    docker: DockerConfig = DockerConfig()


class RecordingConfig(_Section):
    """Recordings: one asciicast v2 file and one lossless file a channel."""

    enabled: bool = True
    """Record what goes over every channel."""
    output_dir: Path | None = None
    """Where recordings go; `recordings` under `data_dir` by default."""


class LoggingConfig(_Section):
    """What Hermes says of itself (log, on standard error) and of its attackers (events, as JSON lines)."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log message shown."""
    format: Literal["console", "json"] = "console"
    """Form of the log."""
    events: str = Field(default="events.jsonl", min_length=1)
    """Events as JSON lines besides the journal: `stdout`, `off`, or a file (relative to `data_dir`)."""


class Settings(_Section):
    """All settings of one sensor."""

    sensor: SensorConfig = SensorConfig()
    server: ServerConfig = ServerConfig()
    authentication: AuthenticationConfig = AuthenticationConfig()
    container_pool: ContainerPoolConfig = ContainerPoolConfig()
    recording: RecordingConfig = RecordingConfig()
    logging: LoggingConfig = LoggingConfig()
    data_dir: Path = Path("/var/lib/hermes")
    """Where everything is kept: journal, recordings, host keys, images, stopped containers."""

    @model_validator(mode="after")
    def _possible(self) -> "Settings":
        if self.sensor.user == "root":
            raise ValueError("sensor.user is root: the front must run as an unprivileged user, such as hermes")
        return self

    @property
    def recordings_dir(self) -> Path:
        """Where recordings go, resolved."""
        return self.recording.output_dir or self.data_dir / "recordings"
