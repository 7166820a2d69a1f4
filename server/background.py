"""Ends tasks that run beside the requests, whatever they are doing.

One cancellation is not always enough: where it meets an answer that comes in the same moment, Python 3.11's
`asyncio.wait_for` returns the answer, and a client that turns CancelledError into an error of its own hands it to the
loop, which takes it for one more failure and goes on. So a task that goes on is cancelled again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from server.logs import log

_AGAIN_SECONDS = 0.1  # until a task that did not end is cancelled again
_MOST = 100  # times


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Returns once all of them have ended, or ten seconds of cancelling did not end them. What they failed with, and
    those that go on, are logged by name: the rest of the controller is to stop all the same."""
    running = set(tasks)
    for _ in range(_MOST):
        for task in running:
            task.cancel()
        if not running:
            break
        done, running = await asyncio.wait(running, timeout=_AGAIN_SECONDS)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                log(logging.ERROR, "a task had failed", task=task.get_name(), reason=type(error).__name__)
    for task in running:
        log(logging.ERROR, "a task does not end when it is cancelled", task=task.get_name())
