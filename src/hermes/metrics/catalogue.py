"""The catalogue of metrics: each named, explained, and taken from one kind of event or from the state of the sensor.

`docs/reference/metrics.md` is made from this. A label has only the values that stand here: no text of an attacker becomes one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import prometheus_client
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import CollectorRegistry

import hermes
from hermes import events
from hermes.config.fields import SETTINGS
from hermes.events import Event
from hermes.metrics.state import State
from hermes.store.cursors import Cursor

OTHER = "other"
"""The label of whatever is none of a label's values."""
BOOLEANS = ("true", "false")
Labels = tuple[str, ...]

OUTPUTS: Labels = ("*",)
"""The names of outputs, which the configuration gives."""

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `labels` names each label and all values it can have, besides `other`.

    With an `event`, it grows with each event of that kind by `amount`, its labels being the event's fields of the same names;
    otherwise `read` takes it from the state: a number for each combination of labels.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: Mapping[str, Labels] = field(default_factory=dict)
    event: type[Event] | None = None
    amount: Callable[[Any], float] = lambda event: 1.0
    read: Callable[[State], Mapping[Labels, float]] | None = None
    buckets: tuple[float, ...] = ()


def _counter(
    name: str, meaning: str, event: type[Event], amount: Callable[[Any], float] = lambda event: 1.0, **labels: Labels
) -> Metric:  # fmt: skip
    return Metric(name, "counter", meaning, labels, event, amount)


def _gauge(name: str, meaning: str, read: Callable[[State], float]) -> Metric:
    return Metric(name, "gauge", meaning, read=lambda state: {(): float(read(state))})


def _output_gauge(name: str, meaning: str, of: Callable[[Cursor], float]) -> Metric:
    """A number for each output that has begun."""
    return Metric(
        name, "gauge", meaning, {"output": OUTPUTS},
        read=lambda state: {(it.name,): float(of(it.cursor)) for it in state.outputs if it.cursor is not None},
    )  # fmt: skip


def _histogram(name: str, meaning: str, event: type[Event], of: Callable[[Any], float], buckets: tuple[float, ...]) -> Metric:
    return Metric(name, "histogram", meaning, event=event, amount=of, buckets=buckets)


CATALOGUE: tuple[Metric, ...] = (
    Metric("hermes_events_total", "counter", "Events, by name.", {"event": tuple(events.ALL)}),
    _counter(
        "hermes_limit_reached_total", "Times a limit was reached, those whose events were suppressed included.",
        events.LimitReached, lambda event: 1 + event.suppressed, limit=tuple(SETTINGS),
    ),
    _counter("hermes_connections_total", "Connections taken.", events.ConnectionOpened),
    _counter(
        "hermes_connections_refused_total", "Connections cut at once.",
        events.ConnectionRefused, lambda event: 1 + event.suppressed,
    ),
    _counter(
        "hermes_connections_closed_total", "Connections that ended, by cause.", events.ConnectionClosed, cause=events.CAUSES,
    ),
    _counter(
        "hermes_auth_attempts_total", "Authentication tries.", events.AuthAttempt,
        method=("none", "password", "publickey", "keyboard-interactive"), accepted=BOOLEANS,
    ),
    _counter("hermes_sessions_total", "Sessions.", events.SessionOpened),
    _counter(
        "hermes_channels_total", "Channels that asked for something to run, by what.", events.ChannelStarted,
        kind=("shell", "exec", "subsystem"),
    ),
    _counter("hermes_processes_total", "Programs that were executed in containers, or tried to.", events.ProcessStarted),
    _counter(
        "hermes_network_attempts_total", "Connections, addresses and packets that containers asked for, by call.",
        events.NetworkAttempted, lambda event: 1 + event.repeated, call=("connect", "bind", "sendto", "sendmsg", "sendmmsg"),
    ),
    _counter(
        "hermes_received_bytes_total", "Bytes clients sent on channels that are closed.",
        events.ChannelClosed, lambda event: event.bytes_in,
    ),
    _counter(
        "hermes_sent_bytes_total", "Bytes clients were sent on channels that are closed.",
        events.ChannelClosed, lambda event: event.bytes_out,
    ),
    _counter(
        "hermes_requests_dropped_total", "Repeated requests that were not written as events (server.max_requests).",
        events.ConnectionClosed, lambda event: event.requests_dropped,
    ),
    _counter(
        "hermes_evidence_removed_bytes_total", "Bytes of evidence removed to hold a limit.",
        events.EvidenceRemoved, lambda event: event.bytes, what=("recording", "journal", "lines"),
    ),
    _histogram(
        "hermes_allocation_wait_seconds", "Time sessions waited for their container.",
        events.SessionContainer, lambda event: event.waited,
        (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    ),
    _histogram(
        "hermes_session_duration_seconds", "How long sessions lasted.",
        events.SessionClosed, lambda event: event.duration, (1, 5, 15, 60, 300, 900, 1800, 3600, 14400),
    ),
    _histogram(
        "hermes_container_create_seconds", "Time it took to make a container.",
        events.ContainerCreated, lambda event: event.seconds, (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    ),
    _gauge("hermes_connections_open", "Connections open, authenticated or not.", lambda state: state.connections),
    _gauge("hermes_connections_unauthenticated", "Those of them not authenticated.", lambda state: state.unauthenticated),
    _gauge("hermes_sessions_open", "Sessions open.", lambda state: state.sessions),
    _gauge("hermes_channels_open", "Session channels open.", lambda state: state.channels),
    Metric(
        "hermes_containers", "gauge", "Containers, by state; absent while the broker does not answer.",
        {"state": ("warm", "creating", "active", "stopped")},
        read=lambda state: {(name,): float(count) for name, count in (state.containers or {}).items()},
    ),
    Metric(
        "hermes_up", "gauge", "1 while this part of the sensor is well, else 0.",
        {"part": ("listening", "journal", "broker")},
        read=lambda state: {(part,): float(well) for part, well in state.checks.items()},
    ),
    _gauge("hermes_journal_waiting", "Events that wait to be written.", lambda state: state.journal_waiting),
    _gauge(
        "hermes_spools_waiting_bytes", "Bytes of facts seen in containers that are not in the journal yet.",
        lambda state: state.spools_waiting,
    ),
    Metric(
        "hermes_index_lag_events", "gauge", "Events the index has yet to take in.",
        read=lambda state: {} if state.index_lag is None else {(): float(state.index_lag)},
    ),
    Metric(
        "hermes_output_lag_events", "gauge", "Events an output has yet to look at.", {"output": OUTPUTS},
        read=lambda state: {(it.name,): float(it.lag) for it in state.outputs if it.lag is not None},
    ),
    _output_gauge(
        "hermes_output_delivered_events", "Events and alerts an output delivered, since its first start.",
        lambda cursor: cursor.delivered,
    ),
    _output_gauge(
        "hermes_output_missed_events", "Events removed from the journal before an output had them, since its first start.",
        lambda cursor: cursor.missed,
    ),
    _output_gauge(
        "hermes_output_failing_since_seconds", "When an output began to fail, in seconds since the epoch; 0 while it delivers.",
        lambda cursor: cursor.failing_since or 0,
    ),
    Metric(
        "hermes_build_info", "gauge", "1, with the version of Hermes that runs.", {"version": (hermes.__version__,)},
        read=lambda state: {(hermes.__version__,): 1.0},
    ),
)  # fmt: skip
"""Every metric of Hermes' own. Beside them stand the client library's `process_…`: CPU time, memory, descriptors of the front."""


class Metrics:
    """All metrics of one sensor."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        prometheus_client.ProcessCollector(registry=self._registry)
        self._feeds: dict[type[Event], list[Callable[[Event], None]]] = {}
        self._gauges: list[tuple[prometheus_client.Gauge, Callable[[State], Mapping[Labels, float]]]] = []
        for metric in CATALOGUE:
            self._add(metric)

    def _add(self, metric: Metric) -> None:
        names = tuple(metric.labels)
        if metric.kind == "gauge":
            assert metric.read is not None
            gauge = prometheus_client.Gauge(metric.name, metric.meaning, names, registry=self._registry)
            self._gauges.append((gauge, metric.read))
            return
        if metric.kind == "histogram":
            made: Any = prometheus_client.Histogram(
                metric.name, metric.meaning, names, registry=self._registry, buckets=metric.buckets
            )  # fmt: skip
        else:
            made = prometheus_client.Counter(metric.name, metric.meaning, names, registry=self._registry)
        grow = "observe" if metric.kind == "histogram" else "inc"
        if metric.event is None:
            for tag, kind in events.ALL.items():
                self._feeds.setdefault(kind, []).append(_feed(getattr(made.labels(tag), grow), metric.amount))
        elif not names:
            self._feeds.setdefault(metric.event, []).append(_feed(getattr(made, grow), metric.amount))
        else:
            self._feeds.setdefault(metric.event, []).append(_labelled(made, metric))

    def count(self, event: Event) -> None:
        """Take in one event. Never fails, whatever is in it; may be called on any thread."""
        for feed in self._feeds.get(type(event), ()):
            feed(event)

    def text(self, state: State, *, openmetrics_format: bool = False) -> bytes:
        """Return all metrics in Prometheus' text format, or in OpenMetrics'."""
        for gauge, read in self._gauges:
            values = read(state)
            if () in values:
                gauge.set(values[()])
            else:
                gauge.clear()
                for labels, value in values.items():
                    gauge.labels(*labels).set(value)
        write = openmetrics.generate_latest if openmetrics_format else prometheus_client.generate_latest
        return bytes(write(self._registry))


def _feed(grow: Callable[[float], None], amount: Callable[[Event], float]) -> Callable[[Event], None]:
    return lambda event: grow(max(0.0, amount(event)))


def _labelled(made: Any, metric: Metric) -> Callable[[Event], None]:
    """Feed a metric whose labels are fields of the event."""
    fields = [(name, frozenset(values)) for name, values in metric.labels.items()]
    children: dict[Labels, Any] = {}

    def feed(event: Event) -> None:
        values = [(_text(getattr(event, name)), allowed) for name, allowed in fields]
        labels = tuple([value if value in allowed else OTHER for value, allowed in values])
        child = children.get(labels)
        if child is None:
            child = children[labels] = made.labels(*labels)
        child.inc(max(0.0, metric.amount(event)))

    return feed


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
