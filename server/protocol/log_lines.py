"""Structured logs of every process: one JSON object a line on stderr.

No prompt text, no answer, no picture and no key is ever given to a logger.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson


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
