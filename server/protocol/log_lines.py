"""Structured logs of every process: one JSON object a line on stderr.

No prompt text, no answer, no picture and no key is ever given to a logger. Exceptions may quote what a client sent, so
of them a line has the kinds and the places, not the messages.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType

import orjson

_MOST_CAUSES = 8  # of an error that are told


class JsonLines(logging.Formatter):
    """`logger.info("event", extra={"fields": {...}})` -> {"time", "level", "logger", "event", ...fields}."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        """The error, then each that it came from."""
        error, told = ei[1], list[str]()
        while error is not None and len(told) < _MOST_CAUSES:
            told.append(f"{type(error).__qualname__}\n{''.join(traceback.format_tb(error.__traceback__))}")
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "from ".join(told).rstrip()


def configure_logging(level: str, *ours: str) -> None:
    """`ours` are logged from `level` on, everything else from warnings on.

    For a process of its own; whoever embeds a part keeps their own logging.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ours:
        logging.getLogger(name).setLevel(level.upper())
