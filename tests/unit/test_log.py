"""The log can be read by people and by machines, and moves no terminal."""

import json
from collections.abc import Iterator

import pytest
import structlog

from hermes import log
from hermes.config import LoggingConfig

HOSTILE = "\x1b[2J\x07‮evil\n[red]"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """structlog as it was."""
    yield
    structlog.reset_defaults()


def test_console_lines_hold_nothing_that_moves_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(LoggingConfig(), process="front")
    structlog.get_logger().warning(HOSTILE, reason=HOSTILE)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert "process=front" in line
    assert "\\x1b[2J" in line


def test_json_lines_are_exact(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(LoggingConfig(format="json"), process="broker")
    structlog.get_logger().warning("message", reason=HOSTILE)
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["event"], record["reason"], record["process"], record["level"]) == ("message", HOSTILE, "broker", "warning")


def test_level(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(LoggingConfig(level="error"), process="front")
    structlog.get_logger().warning("not shown")
    structlog.get_logger().error("shown")
    assert "not shown" not in (said := capsys.readouterr().err)
    assert "shown" in said
