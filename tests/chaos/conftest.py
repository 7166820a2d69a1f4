"""A system whose every process may be lost: two workers, a controller, and a Valkey outside of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from server.state import EmbeddedValkey

STALL_SECONDS = 10.0  # after which a stream that says nothing is given up


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    valkey = EmbeddedValkey()
    valkey.start()
    yield valkey
    valkey.stop()


@pytest.fixture(scope="module")
def shared_system(running_system: Any, valkey: EmbeddedValkey) -> Iterator[Any]:
    """Workers decode four answers at once, so that others wait at them."""
    controller = {"redis_url": valkey.url, "stall_seconds": STALL_SECONDS}
    with running_system(controller, {"max_running": 4}) as system:
        yield system


@pytest.fixture
def system(shared_system: Any, eventually: Any) -> Any:
    """Whole and idle, whatever the test before did to it."""
    shared_system.restore()
    shared_system.wait_whole()
    eventually(shared_system.idle, "the workers have nothing in hand")
    return shared_system


@dataclass
class Outcome:
    """What became of one request."""

    id: str
    text: str = ""
    begun: bool = False  # the first piece of a streamed answer came
    error: str = ""  # the code with which a begun stream ended


class Caller:
    """Asks about pictures. Only a stream that has begun may fail, and only in the way that streams tell of errors."""

    def __init__(self, client: AsyncOpenAI, system: Any, pictures: Any) -> None:
        self._client = client
        self._system = system
        self._pictures = pictures
        self._asked = 0

    def outcome(self) -> Outcome:
        self._asked += 1
        return Outcome(f"chaos-{id(self):x}-{self._asked}")

    async def ask(self, number: int, *, stream: bool, tokens: int = 40, outcome: Outcome | None = None) -> Outcome:
        """Greedy, so that the same question has the same answer everywhere."""
        outcome = outcome or self.outcome()
        content: Any = [self._pictures.part(number), {"type": "text", "text": "what is it?"}]
        fields: dict[str, Any] = {
            "model": self._system.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": tokens,
            "extra_body": {"ignore_eos": True},
            "extra_headers": {"X-Request-Id": outcome.id},
        }
        if not stream:
            answer = await self._client.chat.completions.create(**fields)
            outcome.text = answer.choices[0].message.content or ""
            return outcome
        chunks = await self._client.chat.completions.create(**fields, stream=True)
        try:
            async for chunk in chunks:
                outcome.begun = True
                outcome.text += chunk.choices[0].delta.content or ""
        except openai.APIConnectionError:
            raise
        except openai.APIError as error:
            if not outcome.begun:
                raise
            outcome.error = str(error.code)
        return outcome


@pytest.fixture
async def caller(system: Any, pictures: Any) -> AsyncIterator[Caller]:
    async with AsyncOpenAI(base_url=f"{system.url}/v1", api_key=system.key, max_retries=0, timeout=300.0) as client:
        yield Caller(client, system, pictures)
