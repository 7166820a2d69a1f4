"""Tasks beside the requests end when they shall, also those that take a cancellation for something else."""

from __future__ import annotations

import asyncio

import pytest

from server.background import end


async def test_a_task_that_took_a_cancellation_for_a_failure_is_ended_all_the_same() -> None:
    swallowed = []

    async def follow() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if len(swallowed) >= 2:
                    raise
                swallowed.append(True)  # as a client does that tries again after any error

    tasks = [asyncio.create_task(follow(), name="registry"), asyncio.create_task(asyncio.sleep(3600))]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await end(tasks)
    assert [task.cancelled() for task in tasks] == [True, True]
    assert len(swallowed) == 2


async def test_what_a_task_failed_with_is_logged_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("out of order")

    tasks = [asyncio.create_task(fail(), name="limits"), asyncio.create_task(asyncio.sleep(3600))]
    await asyncio.sleep(0)
    await end(tasks)
    assert tasks[1].cancelled()
    assert [record.getMessage() for record in caplog.records] == ["a task had failed"]


async def test_nothing_to_end_is_no_matter() -> None:
    await end([])
