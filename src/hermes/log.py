"""What Hermes says of itself: structlog to standard error, with nothing in it that could move a terminal."""

import asyncio
import logging
import sys
from io import StringIO
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from hermes.config import LoggingConfig


def configure(config: LoggingConfig, *, process: str) -> None:
    """Set up this process's log. `process` (`launcher`, `broker`, `front`) stands in every line.

    What libraries say through `logging` and `warnings`, from warning on, goes the same way.
    """

    def name_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    renderer: list[Processor]
    if config.format == "json":
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=True)]
    else:
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)
        renderer = [_escape, console]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            name_process,
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Libraries):
            root.removeHandler(handler)
    root.addHandler(_Libraries(logging.WARNING))
    logging.captureWarnings(True)


def handle_loop_exceptions(loop: asyncio.AbstractEventLoop) -> None:
    """Log what nobody caught in `loop`, as asyncio itself would, but through this log."""
    loop.set_exception_handler(_loop_exception)


def _loop_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    about = {key: repr(value) for key, value in context.items() if key not in ("message", "exception")}
    if (error := context.get("exception")) is not None:
        about["exc_info"] = error
    structlog.get_logger("asyncio").error(context.get("message") or "unhandled exception in the event loop", **about)


class _Libraries(logging.Handler):
    """Hand on what libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  foreign arguments, foreign __str__
            message = str(record.msg)
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        structlog.get_logger(record.name).log(level, message, **fields)


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Make every text in the event printable on one line."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _printable(value)
    return event


def _write_traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """Write a traceback without the values of variables, which may be passwords. Its lines are printable, and indented: none
    can pass for a line of the log."""
    plain = StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    for line in plain.getvalue().strip("\n").split("\n"):
        out.write("\n  " + _printable(line))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
