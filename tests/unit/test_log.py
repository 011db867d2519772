"""The log can be read by people and by machines, and moves no terminal."""

import asyncio
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from hermes import log
from hermes.config import LoggingConfig

HOSTILE = "\x1b[2J\x07‮evil\n[red]"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """structlog and logging as they were."""
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if type(handler).__module__ != log.__name__]


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


def fail(password: str) -> None:
    raise ValueError(HOSTILE)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_traceback_shows_no_variables_and_moves_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    log.configure(LoggingConfig(), process="front")
    try:
        fail("".join(["hunter", "2"]))
    except ValueError:
        structlog.get_logger().exception("failed")
    first, *lines = capsys.readouterr().err.splitlines()
    assert "failed" in first
    assert "Traceback" in lines[0]
    assert any("\\x1b[2J" in line for line in lines)
    assert all(line.isprintable() and line.startswith("  ") for line in lines)
    assert "hunter2" not in "".join(lines)


@pytest.mark.parametrize("format", ["console", "json"])
def test_what_libraries_say_goes_the_same_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, format: Literal["console", "json"]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own makes errors of bad arguments
    log.configure(LoggingConfig(format=format), process="front")
    log.configure(LoggingConfig(format=format), process="front")
    logger = logging.getLogger("some.library")
    logger.info("not shown")
    logger.warning("from %s", HOSTILE)
    logger.log(35, "between levels")
    logger.error("bad arguments %d", "x")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(HOSTILE, ResourceWarning, stacklevel=1)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert all(line.isprintable() and "front" in line for line in said)
    assert "some.library" in said[0]
    assert "\\x1b[2J" in said[0] or json.loads(said[0])["event"] == f"from {HOSTILE}"
    assert "between levels" in said[1]
    assert "bad arguments %d" in said[2]
    assert "ResourceWarning" in said[3]


@pytest.mark.asyncio
async def test_what_nobody_caught_in_the_loop_goes_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(LoggingConfig(), process="front")
    loop = asyncio.get_running_loop()
    log.handle_loop_exceptions(loop)
    loop.call_soon(fail, "secret")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    loop.call_exception_handler({"message": HOSTILE})
    said = capsys.readouterr().err.splitlines()
    assert "process=front" in said[0]
    assert any("ValueError" in line for line in said)
    assert all(line.isprintable() for line in said)
    assert "\\x1b[2J" in said[-1]
