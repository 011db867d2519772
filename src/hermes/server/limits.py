"""How many may come, and how many at once: counted and decided without I/O, a few dictionary look-ups a connection.

A connection that is let in holds a `Slot`: it is *starting* until it is authenticated, then it may become a session, and it
counts until it leaves. Each is counted three times: for its address, for the network around it, and for the whole sensor.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Hashable
from enum import Enum
from typing import NamedTuple

from hermes.config import ServerConfig
from hermes.config.values import parse_startups

Network = tuple[int, int]
"""A network: 4 or 6, and the leading bits of its addresses as a number."""
NOWHERE: Network = (0, 0)
"""The network of whatever is no IP address."""


class Refusal(NamedTuple):
    """The limit that was reached, a setting's dotted key, and its value."""

    limit: str
    value: float


class Step(Enum):
    """Where a connection is on its way."""

    STARTING = "starting"
    SESSION = "session"
    OVER = "over"


def drop_chance(startups: int, begin: int, rate: int, full: int) -> int:
    """Return with how many of 100 chances sshd drops a connection while so many are not authenticated (`MaxStartups`)."""
    if startups < begin:
        return 0
    if startups >= full or rate == 100:
        return 100
    return (100 - rate) * (startups - begin) // (full - begin) + rate


class _Caps(NamedTuple):
    """What one source may have; 0 is no limit."""

    section: str
    startups: int
    connections: int
    connections_per_minute: int
    sessions: int


class _Count:
    """What one source has."""

    __slots__ = ("connections", "seen", "sessions", "startups", "tokens")

    def __init__(self, now: float, tokens: float) -> None:
        self.startups = 0
        self.connections = 0
        self.sessions = 0
        self.tokens = tokens
        self.seen = now


class _Sources:
    """Counts by source. Of those nobody is connected from, at most `room` are kept: the longest unseen are forgotten."""

    def __init__(self, caps: _Caps, room: int, on_forget: Callable[[], None]) -> None:
        self.caps = caps
        self._room = room
        self._on_forget = on_forget
        self._busy: dict[Hashable, _Count] = {}
        self._idle: OrderedDict[Hashable, _Count] = OrderedDict()

    def __len__(self) -> int:
        return len(self._busy) + len(self._idle)

    def refusal(self, now: float, source: Hashable) -> Refusal | None:
        """Return why one more connection of this source cannot be taken."""
        caps = self.caps
        count = self._busy.get(source)
        if count is None:
            count = self._idle.get(source)
            if count is None:
                return None
            self._idle.move_to_end(source)
        self._refill(now, count)
        if caps.startups and count.startups >= caps.startups:
            return self._refused("startups", caps.startups)
        if caps.connections and count.connections >= caps.connections:
            return self._refused("connections", caps.connections)
        if caps.connections_per_minute and count.tokens < 1:
            return self._refused("connections_per_minute", caps.connections_per_minute)
        return None

    def session_refusal(self, source: Hashable) -> Refusal | None:
        """Return why a connection of this source cannot become a session."""
        sessions = self.caps.sessions
        if sessions and self._busy[source].sessions >= sessions:
            return self._refused("sessions", sessions)
        return None

    def enter(self, now: float, source: Hashable) -> None:
        count = self._busy.get(source)
        if count is None:
            count = self._idle.pop(source, None) or _Count(now, self.caps.connections_per_minute)
            self._busy[source] = count
        count.tokens -= 1
        count.startups += 1
        count.connections += 1

    def become_session(self, source: Hashable) -> None:
        count = self._busy[source]
        count.startups -= 1
        count.sessions += 1

    def leave(self, source: Hashable, step: Step) -> None:
        count = self._busy[source]
        if step is Step.STARTING:
            count.startups -= 1
        else:
            count.sessions -= 1
        count.connections -= 1
        if count.connections:
            return
        del self._busy[source]
        if not self.caps.connections_per_minute:
            return
        self._idle[source] = count
        if len(self._idle) > self._room:
            self._idle.popitem(last=False)
            self._on_forget()

    def _refill(self, now: float, count: _Count) -> None:
        most = self.caps.connections_per_minute
        count.tokens = min(most, count.tokens + max(0.0, now - count.seen) * most / 60)
        count.seen = now

    def _refused(self, name: str, value: int) -> Refusal:
        return Refusal(f"{self.caps.section}.{name}", value)


def _caps(config: ServerConfig) -> tuple[_Caps, _Caps]:
    """What one address, and what one network may have."""
    address, network = config.per_address, config.per_network
    return (
        _Caps(
            "server.per_address", address.startups, address.connections, address.connections_per_minute, address.sessions
        ),
        _Caps(
            "server.per_network", network.startups, network.connections, network.connections_per_minute, network.sessions
        ),
    )  # fmt: skip


class Slot:
    """One connection's place; `Limits` moves it on."""

    __slots__ = ("sources", "step")

    def __init__(self, sources: tuple[Hashable, ...]) -> None:
        self.sources = sources
        self.step = Step.STARTING


class Limits:
    """The limits of `server` on connections and sessions."""

    def __init__(self, config: ServerConfig, on_forget: Callable[[], None] = lambda: None) -> None:
        """`on_forget` is called when a source is forgotten because too many others were seen since."""
        network = config.per_network
        self._shifts = {4: 32 - network.ipv4_prefix, 6: 128 - network.ipv6_prefix}
        self._tables = tuple(_Sources(caps, config.max_sources, on_forget) for caps in _caps(config))
        self.reconfigure(config)
        self.startups = 0
        """Connections not authenticated."""
        self.connections = 0
        self.sessions = 0

    def reconfigure(self, config: ServerConfig) -> None:
        """Hold these limits from now on; who is in stays. What networks are, and how many sources are known, stays as it was."""
        self._config = config
        self._startups = parse_startups(config.max_startups)
        self._exempt = [ipaddress.ip_network(it) for it in config.exempt]
        for table, caps in zip(self._tables, _caps(config), strict=True):
            table.caps = caps

    @property
    def sources(self) -> int:
        """Addresses and networks known."""
        return sum(map(len, self._tables))

    def network_of(self, address: str) -> Network:
        """Return the network around an address."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return NOWHERE
        return ip.version, int(ip) >> self._shifts[ip.version]

    def admit(self, now: float, address: str, draw: int) -> Slot | Refusal:
        """Take one more connection, or say why not. `now`: seconds on a clock that only goes on; `draw`: a chance of 100."""
        sources = self._sources_of(address)
        for table, source in zip(self._tables, sources, strict=False):
            if (refusal := table.refusal(now, source)) is not None:
                return refusal
        if self.connections >= self._config.max_connections:
            return Refusal("server.max_connections", self._config.max_connections)
        begin, rate, full = self._startups
        if draw < drop_chance(self.startups, begin, rate, full):
            return Refusal("server.max_startups", full if self.startups >= full else begin)
        for table, source in zip(self._tables, sources, strict=False):
            table.enter(now, source)
        self.startups += 1
        self.connections += 1
        return Slot(sources)

    def log_in(self, slot: Slot) -> Refusal | None:
        """Let an authenticated connection become a session, or say why not. Without effect unless it is starting."""
        if slot.step is not Step.STARTING:
            return None
        for table, source in zip(self._tables, slot.sources, strict=False):
            if (refusal := table.session_refusal(source)) is not None:
                return refusal
        if self.sessions >= self._config.max_sessions:
            return Refusal("server.max_sessions", self._config.max_sessions)
        for table, source in zip(self._tables, slot.sources, strict=False):
            table.become_session(source)
        slot.step = Step.SESSION
        self.startups -= 1
        self.sessions += 1
        return None

    def leave(self, slot: Slot) -> None:
        """Give the connection's place free; the second time, without effect."""
        if slot.step is Step.OVER:
            return
        for table, source in zip(self._tables, slot.sources, strict=False):
            table.leave(source, slot.step)
        if slot.step is Step.STARTING:
            self.startups -= 1
        else:
            self.sessions -= 1
        self.connections -= 1
        slot.step = Step.OVER

    def _sources_of(self, address: str) -> tuple[Hashable, ...]:
        """Return what the address is counted as, one for each table; nothing for one that is exempt."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return address, NOWHERE
        if any(ip in network for network in self._exempt):
            return ()
        return address, (ip.version, int(ip) >> self._shifts[ip.version])
