from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from hermes import events
from hermes.cli.story import Attempt, tell
from hermes.events import Event
from hermes.store import StoredEvent
from tests.unit.store.facts import login, logout

BEGUN = datetime(2026, 1, 2, tzinfo=UTC)
ME: dict[str, Any] = {"session_id": "s", "connection_id": "c"}


def stored(*facts: Event) -> list[StoredEvent]:
    """Return events as the journal gives them, one a second."""
    return [
        StoredEvent(
            id=number, time=BEGUN + timedelta(seconds=number), sensor="s1", event=one.tag(), connection_id=one.connection_id,
            session_id=one.session_id, body=msgspec.to_builtins(one),
        )
        for number, one in enumerate(facts)
    ]  # fmt: skip


def test_a_plain_session_leaves_nothing_over() -> None:
    story = tell(stored(*login("s"), *logout("s")))
    assert story.rest == []
    assert [(attempt.password, attempt.accepted) for attempt in story.attempts] == [("wrong", False), ("root", True)]
    assert story.attempts[1].time == BEGUN + timedelta(seconds=2)
    (channel,) = story.channels
    assert (channel.kind, channel.command, channel.recording, channel.exit_status) == ("exec", "uname -a", "r/0.cast", 0)
    assert channel.opened == BEGUN + timedelta(seconds=5)
    assert channel.closed == BEGUN + timedelta(seconds=7)
    assert story.waited == 0.003


def test_channels_at_the_same_time_are_kept_apart() -> None:
    story = tell(
        stored(
            events.ChannelOpened(channel=7, **ME),
            events.ChannelOpened(channel=0, **ME),
            events.ChannelInput(channel=7, line="seven", **ME),
            events.ChannelInput(channel=0, line="zero", truncated=True, **ME),
            events.ChannelInput(channel=7, line="again", **ME),
        )
    )
    assert [(channel.channel, [one.line for one in channel.inputs]) for channel in story.channels] == [
        (7, ["seven", "again"]),
        (0, ["zero"]),
    ]
    assert story.channels[1].inputs[0].truncated
    assert story.channels[0].closed is None


def test_channels_of_different_stories_share_nothing() -> None:
    tell(stored(events.ChannelInput(channel=0, line="one", **ME)))
    assert tell(stored(events.ChannelOpened(channel=0, **ME))).channels[0].inputs == []


def test_what_is_not_told_elsewhere_is_kept() -> None:
    odd = stored(
        events.SessionTimeout(limit="idle", seconds=300, **ME),
        events.ConnectionClosed(connection_id="c", cause="idle-timeout", duration=1, auth_attempts=1, channels=0),
        events.ConnectionClosed(connection_id="c", cause="client", duration=1, auth_attempts=1, channels=0),
    )
    unknown = msgspec.structs.replace(odd[0], event="moon.landed", body={"event": "moon.landed"})
    assert tell([*odd, unknown]).rest == [*odd[:2], unknown]


def test_every_event_of_the_catalogue_can_be_told() -> None:
    examples = [
        kind(**{field.name: _example(field.type) for field in msgspec.structs.fields(kind) if field.required})
        for kind in events.ALL.values()
    ]  # fmt: skip
    story = tell(stored(*examples))
    told = {event.event for event in story.rest}
    assert {"forward.requested", "channel.env", "connection.request", "recording.failed", "container.lost"} <= told
    assert not told & {"auth.attempt", "channel.input", "channel.started", "session.opened"}


def _example(kind: Any) -> Any:
    return {str: "x", int: 1, float: 1.0, bool: False}.get(kind, ["x"])


def test_secrets_are_named() -> None:
    attempt = Attempt(
        time=BEGUN, method="m", username="u", accepted=False, rule="no", password="p", new_password="n", responses=["r1", "r2"],
        key_type="dsa", key_fingerprint="SHA256:k", key_signed=False,
    )  # fmt: skip
    assert list(attempt.secrets()) == [
        ("password", "p"), ("new password", "n"), ("response", "r1"), ("response", "r2"), ("key dsa (only asked)", "SHA256:k"),
    ]  # fmt: skip
