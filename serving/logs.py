"""Log lines to stderr: for people, or one JSON object a line; libraries' warnings among them."""

import logging
import sys
import warnings
from contextlib import suppress
from io import TextIOBase
from typing import Final, TextIO, cast

import structlog
from structlog.dev import plain_traceback
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import Processor

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _Stderr(TextIOBase):
    """Standard error, of which a full disk or a reader that has gone costs lines, never what was to be told."""

    def write(self, text: str) -> int:
        """Write, where that can be done."""
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, likewise."""
        with suppress(OSError, ValueError):
            sys.stderr.flush()


class _Forward(logging.Handler):
    """Hands lines of the standard library's logging (grpc, uvicorn, OpenTelemetry) to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log it again."""
        level = logging.ERROR if record.levelno >= logging.ERROR else logging.WARNING
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # its words do not fit its values: no reason for the library to fail
            text = str(record.msg)
        structlog.get_logger(record.name).log(level, text, source=record.name, exc_info=record.exc_info)


def configure_logs(*, log_format: str = "console", log_level: str = "info", **facts: str) -> None:
    """Set structlog for this process; log_format is "console" or "json". `facts` are told in every line.

    Tracebacks come without their variables, which structlog would print: those of a request are tokens and pictures.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        lambda _logger, _method, line: {**facts, **line},  # not bound: threads, the library's too, would not tell them
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        tracebacks = ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
        ends: list[Processor] = [tracebacks, structlog.processors.JSONRenderer()]
    else:
        ends = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain_traceback)]
    structlog.configure(
        processors=shared + ends,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[log_level]),
        # A line is one write: several processes share stderr.
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,  # else every call binds anew, 8 µs even where its level is off
    )
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of what a stranger's picture contains, a line for each tag
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)
