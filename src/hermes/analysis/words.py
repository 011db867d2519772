"""What of an event can be searched: its text. Pure."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_CHARACTERS = 256 * 1024
"""Of one event."""

_UNSAID = frozenset(
    {
        "event", "connection_id", "session_id", "container_id", "recording", "method", "rule", "kind", "cause", "direction",
        "call", "family", "protocol", "source", "change", "compression", "languages", "engine", "image", "local_ip", "ids",
    }
)  # fmt: skip
"""Fields whose words are Hermes' own, or are filters: `password` should find passwords, not every try of one."""


def text_of(event: str, body: Mapping[str, Any]) -> str:
    """The text by which an event is found, empty if there is none. NULs are spaces: SQLite's functions would stop at one."""
    said = _SAID.get(event)
    words = said(body) if said is not None else _everything(body)
    text = " ".join(it for it in words if it)[:MAX_CHARACTERS]
    return text.replace("\0", " ") if "\0" in text else text


def _everything(body: Mapping[str, Any]) -> Iterator[str]:
    """All text of an event, also of one that this Hermes does not know."""
    for name, value in body.items():
        if name in _UNSAID:
            continue
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (it for it in value if isinstance(it, str))


def _process(body: Mapping[str, Any]) -> Iterator[str]:
    arguments = [it for it in body.get("argv") or () if isinstance(it, str)]
    program = body.get("program") or ""
    if not arguments or arguments[0] != program:
        yield program
    yield from arguments


def _endpoint(host: str, port: str) -> Callable[[Mapping[str, Any]], Iterator[str]]:
    def words(body: Mapping[str, Any]) -> Iterator[str]:
        if name := body.get(host):
            number = body.get(port)
            yield f"[{name}]:{number}" if ":" in name and number else f"{name}:{number}" if number else name
        yield body.get("path") or ""
        yield body.get("outcome") or ""

    return words


_SAID: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "process.started": _process,
    "network.attempted": _endpoint("address", "port"),
    "forward.requested": _endpoint("host", "port"),
}
