"""A storm: processes die, freeze, vanish behind broken networks and lie, all under load, and every request is accounted
for: the right answer, which is the one of an undisturbed run, or an honest error.

`make chaos` lets it blow for minutes and prints what it did; TEPHRA_CHAOS_SECONDS says how long.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from server.state import EmbeddedValkey

SECONDS = float(os.environ.get("TEPHRA_CHAOS_SECONDS", "12"))
LOAD = 6  # requests under way at once
LEAVES = 50 if SECONDS >= 60 else 5  # clients of either kind, of whom it is measured
HONEST = {422, 429, 502, 503}
pytestmark = pytest.mark.timeout(600 + SECONDS)

QUESTIONS: list[dict[str, Any]] = [
    {"max_tokens": 600, "temperature": 0, "ignore_eos": True},
    {"max_tokens": 60, "temperature": 0, "ignore_eos": True, "n": 2},
    {"max_tokens": 500, "seed": 11, "temperature": 1.2, "ignore_eos": True},
    {"max_tokens": 80, "seed": 12, "stop": ["a", "zz"], "frequency_penalty": 1.0},
    {"max_tokens": 200, "seed": 13, "response_format": {"type": "json_object"}},
    {"max_tokens": 100, "seed": 14, "n": 3, "temperature": 0.8, "ignore_eos": True},
]


@dataclass
class Tally:
    """What became of all requests."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest_stall: float = 0.0  # seconds between two parts of a stream that went on, the first part included
    longest_plain: float = 0.0  # seconds for an answer that was not streamed
    events: Counter[str] = field(default_factory=Counter)

    def report(self, carried: float, retried: float) -> str:
        total = sum(self.ended.values())
        right = self.ended["right"]
        return "\n".join(
            [
                f"storm of {SECONDS:g} s: {total} requests, {right} answered rightly, {total - right} honest errors",
                f"  errors by kind: {dict(self.ended - Counter(right=right)) or 'none'}",
                f"  longest stall in a stream {self.longest_stall:.2f} s",
                f"  longest plain answer {self.longest_plain:.2f} s",
                f"  streams carried over {carried:g}, requests repeated {retried:g}",
                f"  what was done: {dict(self.events)}",
            ]
        )


class Load:
    """Clients that ask and compare."""

    def __init__(self, system: Any, session: aiohttp.ClientSession, tally: Tally) -> None:
        self._url = f"{system.url}/v1/chat/completions"
        self._session = session
        self._tally = tally
        self._model = system.model
        self._right: dict[int, list[str]] = {}
        self._numbers = itertools.count()

    async def learn(self) -> None:
        """What an undisturbed run answers."""
        for question in range(len(QUESTIONS)):
            answer = await self._plain(self._body(question, stream=False))
            assert isinstance(answer, list), answer
            self._right[question] = answer

    async def keep_asking(self, until: float) -> None:
        while time.monotonic() < until:
            number = next(self._numbers)
            await self.ask(number % len(QUESTIONS), stream=number % 3 != 0)

    async def ask(self, question: int, *, stream: bool) -> None:
        body = self._body(question, stream=stream)
        answer = await (self._streamed(body) if stream else self._plain(body))
        if isinstance(answer, str):
            self._tally.ended[answer] += 1
        elif answer == self._right[question]:
            self._tally.ended["right"] += 1
        else:
            self._tally.ended["wrong"] += 1
            self._tally.wrong.append(f"{question} stream={stream}: {answer!r}, not {self._right[question]!r}")

    def _body(self, question: int, *, stream: bool) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"question {question}"}]
        # `user` tells two of the same question apart, as two of two people are.
        user = str(next(self._numbers))
        return {"model": self._model, "messages": messages, "stream": stream, "user": user, **QUESTIONS[question]}

    async def _plain(self, body: dict[str, Any]) -> list[str] | str:
        began = time.monotonic()
        async with self._session.post(self._url, json=body) as response:
            answer = await response.json()
        if response.status != 200:
            assert response.status in HONEST, (response.status, answer)
            return str(answer["error"]["code"])
        self._tally.longest_plain = max(self._tally.longest_plain, time.monotonic() - began)
        return [choice["message"]["content"] for choice in answer["choices"]]

    async def _streamed(self, body: dict[str, Any]) -> list[str] | str:
        texts = [""] * body.get("n", 1)
        ended: list[str] = []
        seen = time.monotonic()
        async with self._session.post(self._url, json=body) as response:
            if response.status != 200:
                answer = await response.json()
                assert response.status in HONEST, (response.status, answer)
                return str(answer["error"]["code"])
            ids, roles = set(), 0
            async for line in response.content:
                if not line.startswith(b"data:"):
                    assert not line.strip(), line
                    continue
                now = time.monotonic()
                self._tally.longest_stall, seen = max(self._tally.longest_stall, now - seen), now
                data = line[5:].strip()
                if data == b"[DONE]":
                    ended.append("DONE")
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    return str(chunk["error"]["code"])
                ids.add(chunk["id"])
                for choice in chunk["choices"]:
                    texts[choice["index"]] += choice["delta"].get("content") or ""
                    roles += "role" in choice["delta"]
        whole = ended == ["DONE"] and len(ids) == 1 and roles == len(texts)
        return texts if whole else ["not one whole answer", *texts]


class Weather:
    """What goes wrong, one thing after the other, and is put right again."""

    def __init__(self, system: Any, valkey: EmbeddedValkey, walls: Any, liar: Any, tally: Tally) -> None:
        self._system = system
        self._valkey = valkey
        self._walls = walls
        self._liar = liar
        self._tally = tally
        self._dice = random.Random(5)

    async def blow(self, until: float) -> None:
        what = itertools.cycle((self.kill, self.freeze, self.lie, self.wall, self.reset, self.forget, self.hang))
        while time.monotonic() < until:
            event = next(what)
            self._tally.events[event.__name__] += 1
            await event(self._dice.choice(("east", "west")))
            await asyncio.to_thread(self._system.wait_whole)

    async def kill(self, name: str) -> None:
        worker = self._system.workers[name]
        await asyncio.to_thread(worker.kill)
        worker.start(worker.port)
        await asyncio.to_thread(worker.wait_ready)

    async def freeze(self, name: str) -> None:
        self._system.workers[name].signal(signal.SIGSTOP)
        await asyncio.sleep(self._dice.uniform(0.5, 4.0))
        self._system.workers[name].signal(signal.SIGCONT)

    async def wall(self, name: str) -> None:
        """Connections to the worker stay open, and nothing comes through."""
        self._walls[name].up = True
        await asyncio.sleep(4.0)
        self._walls[name].up = False

    async def reset(self, name: str) -> None:
        self._walls[name].reset()

    async def forget(self, _: str) -> None:
        """Redis is killed and comes back empty."""
        assert self._valkey.pid is not None
        os.kill(self._valkey.pid, signal.SIGKILL)
        self._valkey.halt()
        await asyncio.sleep(self._dice.uniform(0.5, 4.0))
        self._valkey.start()
        await self._connected()

    async def hang(self, _: str) -> None:
        """Redis stands still."""
        assert self._valkey.pid is not None
        os.kill(self._valkey.pid, signal.SIGSTOP)
        await asyncio.sleep(self._dice.uniform(0.5, 6.0))
        os.kill(self._valkey.pid, signal.SIGCONT)
        await self._connected()

    async def _connected(self) -> None:
        async with asyncio.timeout(120):
            while not await asyncio.to_thread(self._system.metric, "registry_connected"):
                await asyncio.sleep(0.1)

    async def lie(self, name: str) -> None:
        """A worker joins that answers every request with another kind of nonsense."""
        await self._liar.join(self._system)
        await asyncio.sleep(2.0)
        await self._liar.leave()


async def dribble(url: str, until: float) -> None:
    """A client that sends its request a byte at a time."""
    host, port = url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    try:
        for byte in itertools.cycle(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX: "):
            if time.monotonic() > until:
                return
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.2)
    except ConnectionError:
        pass  # the controller has had enough of it
    finally:
        writer.close()


@pytest.fixture
def stormy(running_system: Any, valkey: EmbeddedValkey, walls: Any) -> Iterator[Any]:
    controller = {"redis_url": valkey.url, "lease_seconds": 3.0, "heartbeat_seconds": 1.0}
    controller |= {"breaker_open_seconds": 1.0, "quarantine_seconds": 5}
    with running_system(controller, {"worker_url": lambda name: walls[name].url}) as system:
        for name, worker in system.workers.items():
            walls[name].target = worker.port
        yield system


async def test_in_a_storm_every_request_is_answered_rightly_or_told_honestly(
    stormy: Any, valkey: EmbeddedValkey, walls: Any, liar: Any, eventually: Any
) -> None:
    tally = Tally()
    headers = {"Authorization": f"Bearer {stormy.key}"}
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        load = Load(stormy, session, tally)
        await load.learn()
        tally.longest_plain = 0.0
        until = time.monotonic() + SECONDS
        await asyncio.gather(
            Weather(stormy, valkey, walls, liar, tally).blow(until),
            *(load.keep_asking(until) for _ in range(LOAD)),
            *(dribble(stormy.url, until) for _ in range(8)),
        )
        asked = sum(tally.ended.values())
        await asyncio.to_thread(eventually, stormy.idle, "nothing of the storm is left at the workers")
        await load.ask(0, stream=True)
        async with session.get(f"{stormy.url}/metrics") as response:
            metrics = (await response.text()).splitlines()
    carried = total(metrics, "tephra:streams_carried_over_total")
    print("\n" + tally.report(carried, total(metrics, "tephra_controller_retries_total")))
    assert not tally.wrong, tally.wrong[:3]
    assert asked > LOAD and tally.ended["right"] > asked / 2
    assert set(tally.ended) <= {"right", "stream_broken", "unavailable", "request_quarantined", "overloaded"}


async def test_the_work_of_clients_that_leave_ends_at_their_worker(system: Any) -> None:
    """Prints how soon: from closing the client's connection until the engine tells that nothing runs any more."""
    worker = system.workers["east"]
    body = {"model": system.model, "messages": [{"role": "user", "content": "go on"}], "max_tokens": 1800}
    body |= {"temperature": 0, "ignore_eos": True}
    system.workers["west"].signal(signal.SIGSTOP)  # all go to the one that is watched
    async with asyncio.timeout(120):
        while set(system.members()) != {"east"}:
            await asyncio.sleep(0.1)
    headers = {"Authorization": f"Bearer {system.key}"}
    running = re.compile(rb"^vllm:num_requests_running\{.*\} (\S+)$", re.MULTILINE)
    async with aiohttp.ClientSession() as watching:

        async def runs() -> bool:
            async with watching.get(f"{worker.url}/metrics") as response:
                match = running.search(await response.read())
            assert match is not None
            return float(match[1]) > 0

        for stream in (True, False):
            took = []
            for _ in range(LEAVES):
                async with aiohttp.ClientSession(headers=headers) as session:
                    url = f"{system.url}/v1/chat/completions"
                    asking = asyncio.create_task(session.post(url, json={**body, "stream": stream}))
                    while not await runs():
                        await asyncio.sleep(0.005)
                    if stream:
                        await (await asking).content.readany()
                    began = time.monotonic()
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)
                async with asyncio.timeout(60):
                    while await runs():
                        await asyncio.sleep(0.002)
                took.append(time.monotonic() - began)
            took.sort()
            told = f"p50 {1000 * took[len(took) // 2]:.0f} ms, longest {1000 * took[-1]:.0f} ms"
            print(f"\n{LEAVES} clients that left, stream={stream}: work at the worker ended after {told}")
    system.workers["west"].signal(signal.SIGCONT)


def total(metrics: list[str], name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in metrics if line.startswith(name))
