"""Structured logs: one JSON object a line on stderr. No prompt text, no picture, no key ever goes into a field."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

logger = logging.getLogger("tephra.server")


class JsonFormatter(logging.Formatter):
    """`log.info("event", extra={"fields": {...}})` -> {"time", "level", "event", ...fields}."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def log(level: int, event: str, **fields: object) -> None:
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields})


def log_exception(event: str, **fields: object) -> None:
    """Inside an except block: with the traceback."""
    logger.error(event, exc_info=True, extra={"fields": fields})


def configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, its_level in (("tephra", level.upper()), ("uvicorn", "WARNING"), ("asyncio", "WARNING")):
        one = logging.getLogger(name)
        one.handlers[:] = [handler]
        one.propagate = False
        one.setLevel(its_level)
