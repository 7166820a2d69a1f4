"""Ends tasks that run beside the requests, whatever they are doing.

One cancellation is not always enough: where it meets an answer that comes in the same moment, Python 3.11's
`asyncio.wait_for` returns the answer, and a client that turns CancelledError into an error of its own hands it to the
loop, which takes it for one more failure and goes on. So a task that goes on is cancelled again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN_SECONDS = 0.1  # until a task that did not end is cancelled again
_MOST = 100  # times


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Returns once all of them have ended. RuntimeError names those that ten seconds of cancelling did not end.

    An error that one of them ended with before is raised; of several, any.
    """
    running = set(tasks)
    failed: list[BaseException] = []
    for _ in range(_MOST):
        for task in running:
            task.cancel()
        if not running:
            break
        done, running = await asyncio.wait(running, timeout=_AGAIN_SECONDS)
        failed += [error for task in done if not task.cancelled() and (error := task.exception()) is not None]
    if failed:
        raise failed[0]
    if running:
        names = sorted(task.get_name() for task in running)
        raise RuntimeError(f"these tasks do not end when they are cancelled: {', '.join(names)}")
