"""Puts a workload on a target: so many conversations at once, or arrivals at a rate; for so many requests or so long.

A failure is counted and the run goes on. A run that is stopped keeps what it has measured. With a rate, conversations
arrive as a Poisson process, drawn from the seed; they never wait for answers to earlier ones, unless more than the
stated number are under way, and how late requests were sent is measured.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks.measurement import Measurement, Outcome
from benchmarks.pictures import PictureShelf
from benchmarks.target import Exchange, Target
from benchmarks.workload import WARM_UP, Workload

Progress = Callable[[Measurement], None]  # after every request


@dataclass(frozen=True)
class Load:
    """How much of a workload. Either `requests` or `seconds` bounds it."""

    concurrency: int = 1  # conversations under way at once; with a rate, the most
    rate: float | None = None  # conversations that arrive in a second
    requests: int | None = None
    seconds: float | None = None
    warm_up: int = 0  # requests

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if (self.requests is None) == (self.seconds is None):
            raise ValueError("a run needs a number of requests or a duration, and not both")
        for name in ("concurrency", "rate", "requests", "seconds"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name}: expected more than 0, found {value}")

    def conversations(self, turns: int) -> int | None:
        """How many at least will begin, where that is known."""
        return None if self.requests is None else -(-self.requests // turns)


class Drive:
    """One run; `stop` ends it early."""

    def __init__(
        self,
        target: Target,
        workload: Workload,
        load: Load,
        shelf: PictureShelf,
        progress: Progress = lambda _: None,
    ) -> None:
        self.measured = Measurement()
        self._target = target
        self._workload = workload
        self._load = load
        self._shelf = shelf
        self._progress = progress
        self._stop = asyncio.Event()
        self._zero = 0.0
        self._asked = 0
        self._shown: set[int] = set()  # pictures that were sent

    def stop(self) -> None:
        """What is under way is dropped and counted as interrupted."""
        self._stop.set()

    async def run(self) -> Measurement:
        stopped = asyncio.create_task(self._stop.wait())
        try:
            for phase in (self._warm_up, self._measure):
                work = asyncio.create_task(phase())
                try:
                    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    work.cancel()  # to no effect where it is done
                await asyncio.wait({work})
                if not work.cancelled():
                    work.result()
        finally:
            stopped.cancel()
        if self._shelf.made_late:
            self.measured.notes.append(f"{self._shelf.made_late} pictures were made while the run went on.")
        return self.measured

    async def _warm_up(self) -> None:
        """At the run's own concurrency, with pictures and words that do not come again."""
        numbers = iter(range(WARM_UP, WARM_UP + self._load.warm_up))
        single = replace(self._workload, turns=1)

        async def some() -> None:
            for number in numbers:
                tried = await self._target.ask(single, single.messages(number, (), await self._picture(number)))
                if tried.error is not None:
                    self.measured.warm_up_errors[tried.error] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._load.concurrency, self._load.warm_up)):
                group.create_task(some())

    async def _measure(self) -> None:
        self._zero, used = time.perf_counter(), time.process_time()
        try:
            if self._load.rate is None:
                async with asyncio.TaskGroup() as group:
                    numbers = self._numbers()
                    for _ in range(self._load.concurrency):
                        group.create_task(self._one_after_another(numbers))
            else:
                await self._arrivals(self._load.rate)
        finally:
            elapsed = time.perf_counter() - self._zero
            self.measured.client_share = (time.process_time() - used) / max(elapsed, 1e-9)

    def _numbers(self) -> Iterator[int]:
        """Conversations, for as long as the run goes on."""
        number = 0
        while not self._over(time.perf_counter()):
            yield number
            number += 1

    def _over(self, now: float) -> bool:
        if self._load.requests is not None:
            return self._asked >= self._load.requests
        return now - self._zero >= (self._load.seconds or 0.0)

    async def _one_after_another(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            await self._conversation(number, time.perf_counter())

    async def _arrivals(self, rate: float) -> None:
        draw = random.Random(f"{self._workload.seed} arrivals")
        room = asyncio.Semaphore(self._load.concurrency)
        due, number = self._zero, 0
        planned = self._load.conversations(self._workload.turns)

        async def one(number: int, due: float) -> None:
            try:
                await self._conversation(number, due)
            finally:
                room.release()

        async with asyncio.TaskGroup() as group:
            while (number < planned) if planned is not None else not self._over(due):
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await room.acquire()
                group.create_task(one(number, due))
                due += draw.expovariate(rate)
                number += 1

    async def _conversation(self, number: int, due: float) -> None:
        answers: list[str] = []
        url = await self._picture(number)
        for turn in range(self._workload.turns):
            if self._load.requests is not None and self._asked >= self._load.requests:
                return
            self._asked += 1
            messages = self._workload.messages(number, answers, url)
            picture = self._workload.picture_number(number)
            seen = picture in self._shown
            if picture is not None:
                self._shown.add(picture)
            try:
                exchange = await self._target.ask(self._workload, messages)
            except asyncio.CancelledError:
                self.measured.interrupted += 1
                raise
            outcome = self._record(exchange, due if turn == 0 else exchange.began, seen, turn)
            self._progress(self.measured)
            if outcome.error is not None:
                self.measured.not_asked += self._workload.turns - turn - 1
                return
            answers.append(exchange.answer.text)

    async def _picture(self, number: int) -> str | None:
        """A data URL; one that is not on the shelf is made off the event loop."""
        picture = self._workload.picture_number(number)
        if picture is None:
            return None
        if picture in self._shelf:
            return self._shelf.data_url(picture)
        return await asyncio.to_thread(self._shelf.data_url, picture)

    def _record(self, exchange: Exchange, due: float, seen: bool, turn: int) -> Outcome:
        answer, began = exchange.answer, exchange.began
        usage = answer.usage
        outcome = Outcome(
            began=began - self._zero,
            ended=exchange.ended - self._zero,
            late=max(0.0, began - due),
            first=None if answer.first is None else answer.first - began,
            last=None if answer.last is None else answer.last - began,
            longest_gap=max(answer.gaps, default=0.0),
            parts=len(answer.texts),
            input_tokens=usage.prompt_tokens if usage else 0,
            output_tokens=usage.completion_tokens if usage else len(answer.texts),
            seen=seen,
            turn=turn,
        )
        if exchange.error is not None:
            self.measured.fail(outcome, exchange.error, exchange.detail, refused=exchange.refused)
        else:
            for gap in answer.gaps:
                self.measured.gaps.add(gap)
        self.measured.outcomes.append(outcome)
        return outcome
