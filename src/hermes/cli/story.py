"""A session's events put together: its authentication tries, its channels with what was typed, and the rest. No I/O."""

from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec

from hermes import events
from hermes.store import StoredEvent


class Attempt(msgspec.Struct, kw_only=True):
    """One authentication try."""

    time: datetime
    method: str
    username: str
    accepted: bool
    rule: str
    password: str | None = None
    new_password: str | None = None
    responses: list[str] | None = None
    key_type: str | None = None
    key_fingerprint: str | None = None
    key_signed: bool | None = None

    def secrets(self) -> Iterator[tuple[str, str]]:
        """Yield what was offered, each with its name."""
        if self.password is not None:
            yield "password", self.password
        if self.new_password is not None:
            yield "new password", self.new_password
        for response in self.responses or ():
            yield "response", response
        if self.key_fingerprint is not None:
            yield f"key {self.key_type or '?'}" + ("" if self.key_signed else " (only asked)"), self.key_fingerprint


class Input(msgspec.Struct, kw_only=True):
    """One line typed into, or piped to, a shell."""

    time: datetime
    line: str
    truncated: bool


class Channel(msgspec.Struct, kw_only=True):
    """One channel from its opening to its close; what did not happen (yet) is None."""

    channel: int
    opened: datetime
    closed: datetime | None = None
    duration: float | None = None
    """Seconds."""
    kind: str | None = None
    command: str | None = None
    term: str | None = None
    width: int | None = None
    height: int | None = None
    recording: str | None = None
    """The asciicast file, relative to the recordings' directory."""
    inputs: list[Input] = []
    failure: str | None = None
    exit_status: int | None = None
    exit_signal: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0


class Story(msgspec.Struct, kw_only=True):
    """A session, told from its events."""

    attempts: list[Attempt] = []
    channels: list[Channel] = []
    rest: list[StoredEvent] = []
    """Events that nothing else here tells of."""
    hassh: str | None = None
    waited: float | None = None
    """Seconds until it had its container."""


def tell(stored: Iterable[StoredEvent]) -> Story:
    """Put events, in their order, together; events that the catalogue does not know are among `rest`."""
    story = Story()
    channels: dict[int, Channel] = {}

    def channel_of(number: int, moment: datetime) -> Channel:
        if number not in channels:
            channels[number] = Channel(channel=number, opened=moment)
            story.channels.append(channels[number])
        return channels[number]

    for event in stored:
        match event.fact():
            case events.AuthAttempt() as fact:
                fields = {name: getattr(fact, name) for name in Attempt.__struct_fields__ if name != "time"}
                story.attempts.append(Attempt(time=event.time, **fields))
            case events.ClientAlgorithms(hassh=hassh):
                story.hassh = hassh
            case events.SessionContainer(waited=waited):
                story.waited = waited
            case events.ChannelOpened(channel=number):
                channel_of(number, event.time)
            case events.ChannelPty() as fact:
                channel = channel_of(fact.channel, event.time)
                channel.term, channel.width, channel.height = fact.term, fact.width, fact.height
            case events.ChannelStarted() as fact:
                channel = channel_of(fact.channel, event.time)
                channel.kind, channel.command, channel.recording = fact.kind, fact.command, fact.recording
            case events.ChannelInput() as fact:
                line = Input(time=event.time, line=fact.line, truncated=fact.truncated)
                channel_of(fact.channel, event.time).inputs.append(line)
            case events.ChannelFailed(channel=int() as number, reason=reason):
                channel_of(number, event.time).failure = reason
            case events.ChannelClosed() as fact:
                channel = channel_of(fact.channel, event.time)
                channel.closed, channel.duration = event.time, fact.duration
                channel.exit_status, channel.exit_signal = fact.exit_status, fact.exit_signal
                channel.bytes_in, channel.bytes_out = fact.bytes_in, fact.bytes_out
            case (
                events.ConnectionOpened()
                | events.ClientVersion()
                | events.SessionOpened()
                | events.SessionClosed()
                | events.ConnectionClosed(cause="client")
            ):
                pass
            case _:
                story.rest.append(event)
    return story
