"""From settings to sinks: what each output is made of, while secrets and certificates can still be read."""

import ssl
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import certifi
import structlog

from hermes import artifacts
from hermes.config import Settings
from hermes.config.outputs import CowrieOutput, JsonLinesOutput, Output, PostgresOutput, SyslogOutput, WebhookOutput, is_secret
from hermes.errors import ConfigError
from hermes.outputs import jsonl
from hermes.outputs.cowrie import Cowrie
from hermes.outputs.files import FileSink
from hermes.outputs.postgres import PostgresSink
from hermes.outputs.sink import Record, Sink, SinkError
from hermes.outputs.syslog import SyslogSink
from hermes.outputs.webhook import WebhookSink

log = structlog.get_logger(__name__)

MAX_SECRET = 64 * 1024


class Unusable:
    """The sink of an output that lacks something. Its events wait for a start at which it is there."""

    limit = 200

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def send(self, records: Sequence[Record]) -> None:
        raise SinkError(self._reason)

    async def close(self) -> None:
        pass


def make_all(settings: Settings, environ: Mapping[str, str]) -> list[Sink]:
    """The sinks of all outputs, in their order. One that cannot be made fails by itself, loudly."""
    sinks: list[Sink] = []
    for config in settings.outputs:
        try:
            sinks.append(make(config, settings, environ))
        except ConfigError as error:
            log.error("an output cannot be used: mend it, and have the settings read again (SIGHUP)", reason=str(error))
            sinks.append(Unusable(str(error)))
    return sinks


def make(config: Output, settings: Settings, environ: Mapping[str, str], *, alone: bool = True) -> Sink:
    """The sink of one output. It holds nothing open yet. `alone`: no other process sends to it now.

    ConfigError where a secret or a certificate cannot be read.
    """

    def secret(name: str, where: str) -> str:
        return read_secret(where, environ, f"outputs: {name} of {config.name}") if is_secret(where) else where

    match config:
        case JsonLinesOutput():
            return FileSink(config.path, jsonl.lines, alone=alone)
        case CowrieOutput():
            cowrie = Cowrie(
                sensor=settings.sensor.name, journal=settings.journal_path, recordings=settings.recordings_dir,
                artifact=partial(artifacts.path, settings.artifacts_dir),
            )  # fmt: skip
            return FileSink(config.path, cowrie.lines, alone=alone)
        case WebhookOutput():
            return WebhookSink(
                config,
                url=secret("url", config.url),
                key=secret("secret", config.secret),
                trust=trust(config.ca_file, config.name),
            )
        case SyslogOutput():
            return SyslogSink(config, trust(config.ca_file, config.name) if config.transport == "tls" else None)
        case PostgresOutput():
            return PostgresSink(config, url=secret("url", config.url), password=secret("password", config.password))


def read_secret(where: str, environ: Mapping[str, str], key: str) -> str:
    """The secret that `file:/PATH` or `env:VARIABLE` names; without the line end of a file. ConfigError if it is not there."""
    kind, _, place = where.partition(":")
    if kind == "env":
        if not (found := environ.get(place, "")):
            raise ConfigError(f"{key} is {where}: there is no such variable in the environment")
        return found
    try:
        with Path(place).open("rb") as file:
            text = file.read(MAX_SECRET).decode().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key} is {where}: it cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not text:
        raise ConfigError(f"{key} is {where}: it is empty")
    return text


def trust(ca_file: str, name: str) -> ssl.SSLContext:
    """TLS that trusts the authorities of a file, or the usual ones."""
    try:
        if ca_file:
            return ssl.create_default_context(cafile=ca_file)
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
    except OSError as error:  # ssl.SSLError too
        raise ConfigError(f"outputs: ca_file of {name} is {ca_file}: it cannot be used: {error.strerror or error}") from error
    return context
