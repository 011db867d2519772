"""What all commands share: safe output, errors in one line, and the options that say which configuration to use.

Text that an attacker may have sent goes through `visible` before it goes to `console`; `print_json` needs no care.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from hermes.config import Settings, load
from hermes.errors import ConfigError, HermesError

console = Console(markup=False, highlight=False, emoji=False)
"""Standard output. Text in square brackets is only text; a `Panel`'s title is the exception: give it a `Text`."""
err = Console(stderr=True, markup=False, highlight=False, emoji=False)
"""Standard error."""

FAILED = 1
"""Exit code when a command could not do what was asked."""
USAGE = 2
"""Exit code when what was asked, or the configuration, is wrong."""

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="PATH", help="Configuration file, instead of ./hermes.yaml or /etc/hermes/hermes.yaml."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one setting, such as server.port=2022. Can be given many times."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def visible(text: str) -> str:
    """Return `text` with every character that a terminal could act on, or not show, as an escape such as `\\x1b` or `\\u202e`.

    The result is printable, on one line, and the same after a second time. It is for reading; exact text is in JSON.
    """
    return text if text.isprintable() else "".join(it if it.isprintable() else _escape(it) for it in text)


def _escape(char: str) -> str:
    code = ord(char)
    return _SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def print_json(value: object) -> None:
    """Print `value` as JSON in ASCII: every other character is escaped, so that it is exact and moves no terminal."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n")


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Say on standard error, in one line, why the command ends, and end it."""
    _say("hermes: " + message)
    raise typer.Exit(code)


def _say(line: str) -> None:
    err.print(visible(line), soft_wrap=True)


@contextmanager
def reporting() -> Iterator[None]:
    """Turn a `HermesError` into a line on standard error and exit code 1; a `ConfigError` into its lines and exit code 2.

    Also a decorator, below typer's: `@app.command()`, `@reporting()`, `def show(…)`.
    """
    try:
        yield
    except ConfigError as error:
        for line in str(error).split("\n"):
            _say(line)
        raise typer.Exit(USAGE) from None
    except HermesError as error:
        _say(f"hermes: {error}")
        raise typer.Exit(FAILED) from None


def load_settings(config: Path | None = None, overrides: Sequence[str] | None = None) -> Settings:
    """The settings that `ConfigOption` and `SetOption` ask for. `ConfigError` when they are wrong."""
    return load(config, overrides=overrides or ()).settings
