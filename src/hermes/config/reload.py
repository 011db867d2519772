"""Which settings a running sensor takes over when it reads them again."""

from typing import NamedTuple

from hermes.config.fields import SETTINGS, value_of
from hermes.config.models import Settings

RELOADED = frozenset(
    key
    for key in SETTINGS
    if key.startswith(("authentication.", "server."))
    or key.partition(".")[0] in {"forwards", "analysis", "outputs", "alerts"}
    or key in {"logging.level", "logging.format"}
    or key.removeprefix("container_pool.") in {"size", "max_active", "concurrency", "allocation_timeout", "create_timeout"}
) - {
    "server.addresses", "server.port", "server.proxy_protocol", "server.max_sources", "server.limit_interval",
    "server.per_network.ipv4_prefix", "server.per_network.ipv6_prefix", "authentication.remember",
}  # fmt: skip
"""Keys that are taken over: by the front for connections that come from then on, by the pool at once, by analyst and
outputs as they are started afresh."""


class Reload(NamedTuple):
    """`settings` as they are now; the keys that changed by it; the keys that wait for a restart."""

    settings: Settings
    changed: list[str]
    ignored: list[str]


def reload(old: Settings, new: Settings) -> Reload:
    """Take over from `new` what can be taken over. Raises pydantic's ValidationError if the two together are impossible."""
    differing = [key for key in SETTINGS if value_of(old, key) != value_of(new, key)]
    changed = [key for key in differing if key in RELOADED]
    tree = old.model_dump()
    for key in changed:
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            inner = inner[section]
        inner[last] = value_of(new, key)
    return Reload(Settings.model_validate(tree), changed, [key for key in differing if key not in RELOADED])
