"""Where events go besides the journal, and which of them are an alert."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints

from hermes.config.section import Conflict, Section, repeated
from hermes.config.values import Bytes, Means, Seconds, parse_endpoint

_SECRET = re.compile(r"file:/.+|env:[A-Za-z_][A-Za-z0-9_]*")


def is_secret(text: str) -> bool:
    """Whether the text names where a secret is, instead of being one."""
    return _SECRET.fullmatch(text) is not None and text.isprintable()


def _secret(text: str) -> str:
    if text and not is_secret(text):
        raise ValueError("must be file:/PATH or env:VARIABLE: a secret itself does not belong in the configuration")
    return text


def _url(text: str) -> str:
    if is_secret(text):
        return text
    try:
        parts = urlsplit(text)
        usable = (
            parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port) and not parts.fragment
        )
    except ValueError:
        usable = False
    if not usable or not text.isprintable() or " " in text:
        raise ValueError("must be an http:// or https:// URL, or file:/PATH or env:VARIABLE of one that is a secret")
    return text


def _database(text: str) -> str:
    if is_secret(text):
        return text
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("postgresql", "postgres") and parts.path.strip("/")
    except ValueError:
        usable = False
    if not usable or not text.isprintable() or " " in text:
        raise ValueError("must be postgresql://USER@HOST:PORT/DATABASE, or file:/PATH or env:VARIABLE of such a URL")
    return text


def _target(text: str) -> str:
    if text != "stdout" and (not text.startswith("/") or text.endswith("/") or not text.isprintable()):
        raise ValueError("must be stdout, or the absolute path of a file")
    return text


def _receiver(text: str) -> str:
    try:
        parse_endpoint(text, 1)
    except ValueError:
        raise ValueError(
            "must be a host with or without its port, such as logs.example.org, 192.0.2.1:514 or '[2001:db8::1]:6514'"
        ) from None
    return text


def _absolute(text: str) -> str:
    if text and (not text.startswith("/") or not text.isprintable()):
        raise ValueError("must be the absolute path of a file")
    return text


SinkName: TypeAlias = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$"),
    Means("a name of 1 to 63 lower-case letters, digits, '-' or '_'"),
]
Pattern: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[a-z.*?-]{1,64}$"), Means("the name of an event, in which * and ? stand for others")
]
Secret: TypeAlias = Annotated[str, AfterValidator(_secret), Means("file:/PATH or env:VARIABLE")]
Target: TypeAlias = Annotated[str, AfterValidator(_target), Means("stdout, or the absolute path of a file")]
CAFile: TypeAlias = Annotated[str, AfterValidator(_absolute), Means("the absolute path of a file")]
Text: TypeAlias = Annotated[str, StringConstraints(max_length=4096)]
FieldName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$"), Means("the name of a field")]


class OutputConfig(Section):
    """What every output has."""

    name: SinkName
    """Its name, in log and metrics, and of the file under `data_dir` that says how far it came. With another name it begins
    anew."""
    events: tuple[Pattern, ...] = ("*",)
    """Events that go there, such as `session.*`; `[]` for alerts only."""
    start: Literal["now", "beginning"] = "now"
    """Where a new output begins: with what happens from `now` on, or with the `beginning` of the journal."""


class JsonLinesOutput(OutputConfig):
    """One JSON object a line, to a file or standard output."""

    type: Literal["jsonl"]
    path: Target
    """`stdout`, or a file, whose directory `sensor.user` must be able to write in. A file that was renamed or cut is followed."""


class CowrieOutput(OutputConfig):
    """What Cowrie would write in its `cowrie.json`, for programs that read that."""

    type: Literal["cowrie"]
    path: Target
    """`stdout`, or a file, whose directory `sensor.user` must be able to write in. A file that was renamed or cut is followed."""


class WebhookOutput(OutputConfig):
    """HTTP POST of several events at once."""

    type: Literal["webhook"]
    url: Annotated[str, AfterValidator(_url), Means("an http:// or https:// URL, or file:/PATH or env:VARIABLE of one")]
    """Where to. Of Slack and Discord it is a secret: name the file or variable that holds it."""
    format: Literal["generic", "slack", "discord"] = "generic"
    """What is sent: a JSON object of events, or a message."""
    secret: Secret = ""
    """Where the key of the signature (HMAC-SHA256) is; empty for none."""
    ca_file: CAFile = ""
    """Certificates (PEM) of the authorities to trust instead of the usual ones."""
    timeout: Seconds = Field(default=30, gt=0, le=600)
    """Seconds a request may take."""
    batch: int = Field(default=100, ge=1, le=1000)
    """Events in one request at most; Slack and Discord show five in one message."""
    max_bytes: Bytes = Field(default=1024**2, ge=16 * 1024, le=64 * 1024**2)
    """Bytes of one request at most; a single event that is larger is sent by itself."""


class SyslogOutput(OutputConfig):
    """Syslog messages (RFC 5424)."""

    type: Literal["syslog"]
    address: Annotated[str, AfterValidator(_receiver), Means("a host with or without its port")]
    """Host and port of the receiver; the port is 514, of TLS 6514, where none is named."""
    transport: Literal["udp", "tcp", "tls"] = "tcp"
    """`tcp` and `tls` frame messages by their length (RFC 6587, RFC 5425). `udp` promises nothing: what is lost is lost."""
    facility: int = Field(default=13, ge=0, le=23)
    """Number of the facility; 13 is the audit log."""
    ca_file: CAFile = ""
    """Certificates (PEM) of the authorities to trust with `tls` instead of the usual ones."""
    timeout: Seconds = Field(default=30, gt=0, le=600)
    """Seconds that connecting or sending may take."""
    max_bytes: Bytes = Field(default=8192, ge=480, le=65000)
    """Bytes of one message at most; what is longer is cut, and says so."""


class PostgresOutput(OutputConfig):
    """Rows in a table of PostgreSQL, one an event."""

    type: Literal["postgresql"]
    url: Annotated[str, AfterValidator(_database), Means("postgresql://USER@HOST:PORT/DATABASE, or file:/PATH or env:VARIABLE")]
    """The database, with what libpq takes as parameters, such as `?sslmode=verify-full&sslrootcert=/etc/ssl/ca.pem`."""
    password: Secret = ""
    """Where the password is, if it is not in `url`; empty for none."""
    table: Annotated[
        str,
        StringConstraints(pattern=r"^[a-z_][a-z0-9_]{0,40}(\.[a-z_][a-z0-9_]{0,40})?$"),
        Means("the name of a table, or schema.table, in lower case"),
    ] = "hermes_events"
    """The table; it is made where there is none."""
    timeout: Seconds = Field(default=30, gt=0, le=600)
    """Seconds that connecting or storing a batch may take."""


Output: TypeAlias = JsonLinesOutput | CowrieOutput | WebhookOutput | SyslogOutput | PostgresOutput
AnyOutput: TypeAlias = Annotated[
    Output,
    Field(discriminator="type"),
    Means("a mapping with type (jsonl, cowrie, webhook, syslog or postgresql), name and what that type needs"),
]


def secret_variables(outputs: tuple[Output, ...]) -> set[str]:
    """The variables of the environment that hold secrets of these outputs."""
    values = (str(value) for it in outputs for value in it.model_dump().values())
    return {it.removeprefix("env:") for it in values if it.startswith("env:") and is_secret(it)}


class AlertConfig(Section):
    """What every alert has."""

    name: SinkName
    """Its name."""
    output: SinkName
    """The output (one of `outputs`, but not of type `cowrie`) that it goes to."""
    severity: Literal["low", "medium", "high", "critical"] = "medium"
    """How bad it is."""
    suppress: Seconds = 300
    """Seconds after an alert in which further ones of the same kind and key are only counted; the next one says how many."""


class AlertRule(AlertConfig):
    """An alert when certain events happen, or happen often."""

    events: Annotated[tuple[Pattern, ...], Field(min_length=1)]
    """Events that are looked at, such as `auth.*`."""
    where: Annotated[
        dict[FieldName, Annotated[tuple[Text, ...], Field(min_length=1)]],
        Means("a mapping in { } of fields to lists, each item a pattern"),
    ] = Field(default={})
    """Fields of the event, each with patterns (`*` and `?` stand for others) of which one must match; all fields must.
    `source_ip` is known for every event of a connection."""
    count: int = Field(default=1, ge=1, le=1000)
    """So many of them make an alert."""
    within: Seconds = Field(default=60, gt=0, le=7 * 86400)
    """Seconds within which they must happen."""
    by: FieldName = "source_ip"
    """Field by which they are counted, such as `source_ip`, `session_id`, `username` or `sensor`."""


class Honeytoken(AlertConfig):
    """Something that is only known to whoever looked where nobody should, and must never be used. An alert when it is."""

    severity: Literal["low", "medium", "high", "critical"] = "critical"
    """How bad it is."""
    usernames: tuple[Text, ...] = ()
    """User names, tried here or over a forward; with `passwords`, both must be tried together."""
    passwords: tuple[Text, ...] = ()
    """Passwords."""
    keys: tuple[Text, ...] = ()
    """Public keys, by their fingerprint `SHA256:…`."""
    paths: tuple[Text, ...] = ()
    """Files in the box, by their path, in which `*` and `?` stand for others: changed, executed, or named in a command."""
    hashes: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), Means("a SHA-256 in hex")], ...] = ()
    """Files, by the SHA-256 of their content."""
    texts: tuple[Annotated[str, StringConstraints(min_length=4, max_length=4096)], ...] = ()
    """Texts that a command, an input line or a program's argument contains, such as an access key."""

    def conflicts(self) -> Iterable[Conflict]:
        if not (self.usernames or self.passwords or self.keys or self.paths or self.hashes or self.texts):
            yield Conflict(("name",), "needs at least one of usernames, passwords, keys, paths, hashes and texts")


AnyRule: TypeAlias = Annotated[AlertRule, Means("a mapping with name, output, events and what else a rule has")]
AnyToken: TypeAlias = Annotated[Honeytoken, Means("a mapping with name, output and what must never be used")]


class AlertsConfig(Section):
    """Which events somebody should hear of at once, and through which output."""

    rules: tuple[AnyRule, ...] = ()
    """Alerts for certain events, or many of them."""
    honeytokens: tuple[AnyToken, ...] = ()
    """Credentials, files and keys that must never be used."""

    @property
    def all(self) -> tuple[AlertConfig, ...]:
        """Rules and honeytokens."""
        return (*self.rules, *self.honeytokens)


def output_conflicts(outputs: tuple[Output, ...], alerts: AlertsConfig) -> Iterable[Conflict]:
    """What outputs and alerts cannot mean together."""
    for twice in repeated(it.name for it in outputs):
        yield Conflict(("outputs",), f"two outputs have the name {twice}")
    for twice in repeated(it.path for it in outputs if isinstance(it, JsonLinesOutput | CowrieOutput) and it.path != "stdout"):
        yield Conflict(("outputs",), f"two outputs write to {twice}")
    usable = {it.name for it in outputs if not isinstance(it, CowrieOutput)}
    for key, alarms in (("alerts.rules", alerts.rules), ("alerts.honeytokens", alerts.honeytokens)):
        for twice in repeated(it.name for it in alarms):
            yield Conflict((key,), f"two of them have the name {twice}")
        for it in alarms:
            if it.output not in usable:
                known = ", ".join(sorted(usable)) or "there is none"
                yield Conflict((key, "outputs"), f"{it.name} names the output {it.output}, which cannot take alerts: {known}")
    for twice in {it.name for it in alerts.rules} & {it.name for it in alerts.honeytokens}:
        yield Conflict(("alerts.honeytokens",), f"a rule has the name {twice} already")
