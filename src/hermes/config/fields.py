"""The settings as a flat list, taken from the models: for finding keys, explaining mistakes, and writing documentation."""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from hermes.config.models import Settings
from hermes.config.section import Section
from hermes.config.values import MAX_SECONDS, MAX_SIZE, Means, format_duration, format_size, parse_duration, parse_size

ENV_PREFIX = "HERMES_"


class Kind(NamedTuple):
    """A type with the limits put on it: what stands in `Annotated`, or in a field's definition."""

    type: Any
    metadata: tuple[Any, ...] = ()

    @classmethod
    def of(cls, annotation: Any) -> "Kind":
        """Take `Annotated` apart."""
        if get_origin(annotation) is not Annotated:
            return cls(annotation)
        inner, *metadata = get_args(annotation)
        flat = (part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item]))
        return cls(inner, tuple(flat))

    @property
    def optional(self) -> bool:
        """None is a value of this type."""
        return get_origin(self.type) in (Union, types.UnionType) and type(None) in get_args(self.type)

    @property
    def bare(self) -> "Kind":
        """This type without None."""
        if not self.optional:
            return self
        (inner,) = (it for it in get_args(self.type) if it is not type(None))
        kind = Kind.of(inner)
        return Kind(kind.type, (*self.metadata, *kind.metadata))

    @property
    def is_list(self) -> bool:
        return get_origin(self.bare.type) is tuple

    @property
    def is_mapping(self) -> bool:
        return get_origin(self.bare.type) is dict

    @property
    def item(self) -> "Kind":
        """The type of a list's items or of a mapping's values."""
        first, second = get_args(self.bare.type)
        return Kind.of(second if self.is_mapping else first)

    @property
    def sections(self) -> dict[str, type[Section]]:
        """The sections that are items of this list, by their `type`, or the one by ""; empty for a list of values."""
        if not self.is_list:
            return {}
        kinds = get_args(self.item.type) if get_origin(self.item.type) in (Union, types.UnionType) else (self.item.type,)
        found = [it for it in kinds if isinstance(it, type) and issubclass(it, Section)]
        return {get_args(it.model_fields["type"].annotation)[0] if "type" in it.model_fields else "": it for it in found}

    @property
    def wants(self) -> str:
        """What a value must be: completes the sentence "must be …"."""
        kind = self.bare
        return _wants(kind) + _range(kind) + (", or null" if self.optional else "")

    def limits(self, name: str) -> list[Any]:
        return [getattr(it, name) for it in self.metadata if getattr(it, name, None) is not None]

    @property
    def written(self) -> str:
        """How its numbers are best written: `size`, `duration` or `plain`."""
        functions = {getattr(it, "func", None) for it in self.bare.metadata}
        return "size" if parse_size in functions else "duration" if parse_duration in functions else "plain"


def _wants(kind: Kind) -> str:
    if means := [it.text for it in kind.metadata if isinstance(it, Means)]:
        return str(means[0])
    if kind.is_list:
        return f"a list in [ ], each item {kind.item.wants}"
    if kind.is_mapping:
        return "a mapping in { } of user names to lists" + f", each item {kind.item.item.wants}"
    if get_origin(kind.type) is Literal:
        return "one of " + ", ".join(get_args(kind.type))
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}[kind.type]


def _range(kind: Kind) -> str:
    if kind.is_list or kind.is_mapping:
        return ", at least one" if kind.limits("min_length") else ""
    if kind.type is str:
        longest = kind.limits("max_length")
        return (
            f" of at most {min(longest)} characters" if longest and not any(isinstance(it, Means) for it in kind.metadata) else ""
        )
    say: Callable[[Any], str] = {"size": format_size, "duration": format_duration}.get(kind.written, str)
    least, above, most = kind.limits("ge"), kind.limits("gt"), kind.limits("le")
    low = max(least, default=None)
    high = min((it for it in most if it not in (MAX_SIZE, MAX_SECONDS)), default=None)
    if above:
        return f", above {max(above)}" + (f" and at most {say(high)}" if high is not None else "")
    if low == 0 and kind.written != "plain":
        low = None
    if low is not None and high is not None:
        return f" from {say(low)} to {say(high)}"
    if low is not None:
        return f", at least {say(low)}"
    return f" of at most {say(high)}" if high is not None else ""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its dotted `key`, its type, default and meaning."""

    key: str
    section: type[Section]
    kind: Kind
    default: Any
    doc: str

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return ENV_PREFIX + self.key.upper().replace(".", "__")


def own_settings(section: type[Section], prefix: str = "") -> list[Setting]:
    """The settings of one section, each key behind `prefix`, without those of sections in it."""
    found = []
    for name, field in section.model_fields.items():
        kind = Kind.of(field.annotation)
        kind = Kind(kind.type, (*field.metadata, *kind.metadata))
        if not (isinstance(kind.type, type) and issubclass(kind.type, Section)):
            doc = " ".join((field.description or "").split())
            found.append(Setting(prefix + name, section, kind, field.get_default(), doc))
    return found


def _walk(section: type[Section], prefix: str, settings: dict[str, Setting], sections: dict[str, type[Section]]) -> None:
    own = {it.key: it for it in own_settings(section, prefix)}
    for name, field in section.model_fields.items():
        key = prefix + name
        if key in own:
            settings[key] = own[key]
        else:
            assert isinstance(field.annotation, type)
            sections[key] = field.annotation
            _walk(field.annotation, key + ".", settings, sections)


def _catalogue() -> tuple[dict[str, Setting], dict[str, type[Section]]]:
    settings: dict[str, Setting] = {}
    sections: dict[str, type[Section]] = {}
    _walk(Settings, "", settings, sections)
    return settings, sections


SETTINGS: Mapping[str, Setting]
"""Every setting by its dotted key, such as `server.port`."""
SECTIONS: Mapping[str, type[Section]]
"""Every section by its dotted key, such as `container_pool.limits`."""
SETTINGS, SECTIONS = _catalogue()

BY_ENV: Mapping[str, Setting] = {setting.env: setting for setting in SETTINGS.values()}
"""Every setting by its environment variable."""


def value_of(settings: Settings, key: str) -> Any:
    """The value of one setting."""
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value
