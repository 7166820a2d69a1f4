"""Log lines as JSON on standard error, one a line. No prompt or answer text is ever given to a logger here."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

# What requests attach to their lines (`extra=`).
_FIELDS = ("request_id", "method", "path", "status", "ms")


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def configure_logging(level: str) -> None:
    """For a process of its own; whoever embeds the worker keeps their own logging."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("tephra", "worker", "model"):
        logging.getLogger(name).setLevel(level.upper())
