"""Settings as YAML that `load` reads back: every value, with a comment for those that were set somewhere."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from yaml.resolver import Resolver

from hermes.config.fields import SECTIONS, SETTINGS, Kind, own_settings, value_of
from hermes.config.models import Settings
from hermes.config.section import Section
from hermes.config.values import format_duration, format_size

_RESOLVE: Callable[[type[yaml.Node], str, tuple[bool, bool]], str] = Resolver().resolve
_PLAIN = re.compile(r"[A-Za-z0-9/_.][A-Za-z0-9/_.@+-]*")
_ODD = re.compile(r"[yYnN]|[0-9][0-9_]*\.?[0-9_]*(?:[eE][+-]?[0-9]*)?|0[xob].*")
"""What is no text to some version of YAML, though it is to this one."""
_TEXT = "tag:yaml.org,2002:str"


def scalar(value: object) -> str:
    """One value as a YAML scalar: plain where every reader of YAML sees the same text, else in double quotes and ASCII."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    text = str(value)
    if _PLAIN.fullmatch(text) and not _ODD.fullmatch(text) and _RESOLVE(yaml.ScalarNode, text, (True, False)) == _TEXT:
        return text
    return yaml.safe_dump(text, default_style='"', width=2**31).rstrip("\n")


def flow(value: Any, kind: Kind) -> str:
    """One setting's value in one line."""
    if isinstance(value, Section):
        own = own_settings(type(value))
        return "{" + ", ".join(f"{it.key}: {flow(getattr(value, it.key), it.kind)}" for it in own) + "}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {flow(item, kind.item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(flow(item, kind.item) for item in value) + "]"
    if value is not None and kind.written == "size":
        return format_size(value)
    if value is not None and kind.written == "duration":
        return format_duration(value)
    return scalar(value)


def to_yaml(
    settings: Settings,
    *,
    comment: Callable[[str], str] = lambda key: "",
    heading: Callable[[str], str] = lambda key: "",
) -> str:
    """All settings as YAML, in the order of the models.

    `comment` gives the comment behind a setting, `heading` the comment lines above a setting or section, by dotted key.
    """
    lines: list[str] = []
    opened: tuple[str, ...] = ()
    for key, setting in SETTINGS.items():
        *sections, last = key.split(".")
        for depth in range(len(sections)):
            section = tuple(sections[: depth + 1])
            if opened[: depth + 1] != section:
                assert ".".join(section) in SECTIONS
                lines += [""] * (depth == 0 and bool(lines)) + _comment(heading(".".join(section)), depth)
                lines.append("  " * depth + section[-1] + ":")
        if not sections and opened:
            lines.append("")
        opened = tuple(sections)
        lines += _comment(heading(key), len(sections))
        behind = comment(key)
        lines.append(
            "  " * len(sections) + f"{last}: {flow(value_of(settings, key), setting.kind)}" + (f"  # {behind}" if behind else "")
        )
    return "\n".join(lines) + "\n"


def _comment(text: str, depth: int) -> list[str]:
    return ["  " * depth + ("# " + line).rstrip() for line in text.split("\n")] if text else []
