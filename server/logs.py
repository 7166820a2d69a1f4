"""The controller's log lines: an event and its fields. No prompt text, no picture, no key ever goes into one."""

from __future__ import annotations

import logging

logger = logging.getLogger("tephra.server")


def logs(level: int) -> bool:
    """For lines whose fields cost something to put together."""
    return logger.isEnabledFor(level)


def log(level: int, event: str, **fields: object) -> None:
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields})


def log_exception(event: str, **fields: object) -> None:
    """Inside an except block: with the traceback."""
    logger.error(event, exc_info=True, extra={"fields": fields})
