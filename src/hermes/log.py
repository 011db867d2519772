"""What Hermes says of itself: structlog to standard error, with nothing in it that could move a terminal."""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from hermes.config import LoggingConfig


def configure(config: LoggingConfig, *, process: str) -> None:
    """Set up this process's log. `process` (`launcher`, `broker`, `front`) stands in every line."""

    def name_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    renderer: list[Processor]
    if config.format == "json":
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=True)]
    else:
        colors = sys.stderr.isatty()
        renderer = [_escape, structlog.dev.ConsoleRenderer(colors=colors)]
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


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Make every text in the event printable on one line."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    return event
