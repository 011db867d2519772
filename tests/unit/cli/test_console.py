import contextlib
import io
import json
import unicodedata
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from typer.testing import CliRunner

from hermes.cli.console import (
    FAILED,
    USAGE,
    ConfigOption,
    JsonOption,
    SetOption,
    console,
    fail,
    load_settings,
    print_json,
    reporting,
    visible,
)
from hermes.errors import ConfigError, EngineError, HermesError

HOSTILE = "\x1b]0;pwned\x07\x1b[2J\r\n\x9b31m\u202e\u2066\u200b\ufeff\ud800\x7f\x00[red]x[/red] [link=http://x]y[/link] :smile:"


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_nothing_that_is_visible_moves_a_terminal(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert not any(unicodedata.category(it) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for it in shown)
    assert visible(shown) == shown
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    "code", [*range(32), *range(0x7F, 0xA0), 0xAD, 0x61C, 0x200E, *range(0x2028, 0x202F), 0x2069, 0xD800, 0xE0001, 0xFFF9]
)
def test_controls_marks_and_surrogates_are_escaped(code: int) -> None:
    shown = visible(f"a{chr(code)}b")
    assert shown[:2] == "a\\"
    assert shown[-1] == "b"
    assert shown.isascii()


def test_escapes_are_those_of_python() -> None:
    assert visible("\x1b\x9b\u202e\U000e0001\n\t\r é😀") == "\\x1b\\x9b\\u202e\\U000e0001\\n\\t\\r é😀"


def test_markup_of_an_attacker_is_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    console.print(visible(HOSTILE), soft_wrap=True)
    table = Table("what", title="[bold]t[/bold]")
    table.add_row(visible("[red]cell[/red] :smile:"))
    console.print(table)
    out = capsys.readouterr().out
    assert "[red]x[/red] [link=http://x]y[/link] :smile:" in out
    assert "[red]cell[/red] :smile:" in out
    assert "[bold]t[/bold]" in out
    assert out.replace("\n", "").isprintable()


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_json_is_exact_and_ascii(text: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print_json({text: [text]})
    printed = out.getvalue()
    assert printed.isascii()
    assert printed.replace("\n", "").isprintable()
    (read,) = json.loads(printed).items()
    assert read == (text, [text]) or any(0xD800 <= ord(it) < 0xE000 for it in text)


def test_failing_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        fail(f"no session {HOSTILE} " + "x" * 300)
    out, err = capsys.readouterr()
    assert (caught.value.exit_code, out) == (FAILED, "")
    assert err.count("\n") == 1
    assert err.startswith("hermes: no session \\x1b]0;pwned\\x07")
    assert err[:-1].isprintable()


def app_raising(error: Exception) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @reporting()
    def run(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
        """Do it."""
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (EngineError("runc: \x1b[31mno"), FAILED, ["hermes: runc: \\x1b[31mno"]),
        (HermesError("a\nb"), FAILED, ["hermes: a\\nb"]),
        (ConfigError("hermes.yaml:1: a\nhermes.yaml:2: \x1bb"), USAGE, ["hermes.yaml:1: a", "hermes.yaml:2: \\x1bb"]),
    ],
)
def test_errors_of_hermes_are_told_without_a_traceback(error: Exception, code: int, lines: list[str]) -> None:
    result = CliRunner().invoke(app_raising(error), [])
    assert (result.exit_code, result.stdout, result.stderr.splitlines()) == (code, "", lines)


def test_bugs_are_not_hidden() -> None:
    result = CliRunner().invoke(app_raising(ZeroDivisionError()), [])
    assert isinstance(result.exception, ZeroDivisionError)


def test_the_options_reach_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    seen = []

    @app.command()
    @reporting()
    def run(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
        seen.append((load_settings(config, overrides).server.port, as_json))

    file = tmp_path / "my.yaml"
    file.write_text("server: {port: 5}")
    for arguments in (
        [],
        ["-c", str(file)],
        ["--config", str(file), "--set", "server.port=6", "--set", "server.port=7", "--json"],
    ):
        assert CliRunner().invoke(app, arguments, env={"HERMES_SERVER__PORT": None}).exit_code == 0
    assert seen == [(2222, False), (5, False), (7, True)]
