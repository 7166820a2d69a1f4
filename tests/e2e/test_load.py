"""Many at once, and many one after another: nobody gets another's answer, and nothing of them stays behind.

`TEPHRA_MEMORY_REQUESTS=50,500` makes the measurement of memory a longer one; `-s` shows its figures.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types import CompletionUsage

pytestmark = pytest.mark.timeout(600)  # the first test waits for the system

STREAMS = 32
MIB = 2**20
# Of one process. The shortest measurement sends each worker twice that in pictures, and the controller more.
GROWTH = 12 * MIB


@dataclass(frozen=True)
class Answer:
    text: str
    usage: CompletionUsage | None


@pytest.fixture
def stream(running: Any, async_client: AsyncOpenAI, pictures: Any) -> Any:
    async def stream(picture: dict[str, Any], tokens: int) -> Answer:
        """What is said of a picture, drawn greedily."""
        content: Any = [picture, {"type": "text", "text": "what is it?"}]
        chunks = await async_client.chat.completions.create(
            model=running.model,
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=tokens,
            extra_body={"ignore_eos": True},
            stream=True,
            stream_options={"include_usage": True},
        )
        text, usage = "", None
        async for chunk in chunks:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            usage = chunk.usage or usage
        return Answer(text, usage)

    return stream


def counts(answer: Answer) -> tuple[int, int]:
    """Tokens of prompt and answer; how many of them were cached is another matter."""
    assert answer.usage is not None
    return answer.usage.prompt_tokens, answer.usage.completion_tokens


async def test_many_streams_at_once_say_what_each_says_alone(
    stream: Any, running: Any, pictures: Any, eventually: Any
) -> None:
    shown = [pictures.part(number) for number in range(STREAMS)]
    alone = [await stream(picture, 24) for picture in shown]
    assert len({answer.text for answer in alone}) == STREAMS  # so that a mix-up would show
    together = await asyncio.gather(*(stream(picture, 24) for picture in shown))
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [counts(answer) for answer in together] == [counts(answer) for answer in alone]
    assert {answer.usage.completion_tokens for answer in together} == {24}
    assert len({answer.usage.prompt_tokens for answer in together}) > 1  # pictures of several sizes
    eventually(running.idle, "the workers have nothing in hand")


async def test_memory_does_not_grow_with_the_requests_answered(stream: Any, running: Any, pictures: Any) -> None:
    few, many = (int(count) for count in os.environ.get("TEPHRA_MEMORY_REQUESTS", "40,160").split(","))
    processes = [running.controller, *running.workers.values()]
    room = asyncio.Semaphore(8)

    async def answered(number: int) -> None:
        async with room:
            await stream(pictures.large_part(number), 4)

    async def after(first: int, last: int) -> list[int]:
        await asyncio.gather(*(answered(number) for number in range(first, last)))
        return [process.resident for process in processes]

    early, late = await after(0, few), await after(few, many)
    figures = [
        f"{process.name}: {before / MIB:.1f} MiB after {few} requests, {now / MIB:.1f} MiB after {many}"
        for process, before, now in zip(processes, early, late, strict=True)
    ]
    print(*figures, sep="\n")
    assert all(now < before + GROWTH for before, now in zip(early, late, strict=True)), figures
