"""Asks for all answers of a plan, many at once, until all are there or something stops it; then judges them in order.

What comes of a task depends on the plan and the journal's answers alone, not on when an answer came: a run that was
cut off and taken up again ends with the same rows. Rejected answers are replaced by the next items of the plan, as far
as the spare allows.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from training.data.instruct.answers import AnswerFault, Pair
from training.data.instruct.asking import Asker, Unreached
from training.data.instruct.budget import BudgetSpent
from training.data.instruct.duplicates import NearDuplicates
from training.data.instruct.endpoint import EndpointError, RequestRefused
from training.data.instruct.journal import Answered, Journal
from training.data.instruct.judging import Judge
from training.data.instruct.kinds import Kind
from training.data.instruct.plan import Plan, Task
from training.data.instruct.progress import RunProgress
from training.data.instruct.prompts import Prompts

GIVE_UP = 20  # tasks in a row without an answer


@dataclass(frozen=True)
class Rejected:
    """Why a task has no row."""

    task: Task
    code: str
    why: str


@dataclass
class Tally:
    """What became of the tasks of one kind."""

    target: int
    taken: int = 0  # from the front of the plan's order
    unanswered: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    repaired: int = 0  # accepted at the second answer

    @property
    def accepted(self) -> int:
        return self.taken - self.unanswered - len(self.rejected)

    @property
    def codes(self) -> Counter[str]:
        return Counter(rejected.code for rejected in self.rejected)


@dataclass(frozen=True)
class Accepted:
    """A row's substance."""

    task: Task
    pairs: tuple[Pair, ...]


class Run:
    def __init__(
        self,
        plan: Plan,
        targets: dict[Kind, int],
        *,
        prompts: Prompts,
        judge: Judge,
        journal: Journal,
        asker: Asker,
        concurrency: int,
        spare: float,
        progress: RunProgress,
    ) -> None:
        self.tallies = {kind: Tally(target) for kind, target in targets.items()}
        self.stopped: str | None = None  # why, if it ended before its time
        self._plan = plan
        self._prompts = prompts
        self._judge = judge
        self._journal = journal
        self._asker = asker
        self._concurrency = concurrency
        self._most = {kind: min(plan.items, target + int(target * spare)) for kind, target in targets.items()}
        self._progress = progress
        self._faults: dict[str, tuple[str, str] | None] = {}  # by key, once answered: what is wrong with the answer
        self._without: dict[str, tuple[str, str]] = {}  # refused or unreached in this run: code and why
        self._in_a_row = 0
        self._out: set[str] = set()  # keys of near-duplicates
        self._alike = NearDuplicates(sum(self._most.values()))

    def stop(self, why: str) -> None:
        """No further request is begun; those under way are waited for."""
        self.stopped = self.stopped or why

    async def go(self) -> None:
        """Raises OSError: the journal cannot be written."""
        while self.stopped is None and (tasks := self._next_round()):
            await self._ask_all(tasks)
            self._settle(tasks)

    def accepted(self) -> Iterator[Accepted]:
        """In the plan's order, read from the journal."""
        for kind, tally in self.tallies.items():
            for task in self._plan.tasks(kind, 0, tally.taken):
                if task.key in self._faults and self._faults[task.key] is None and task.key not in self._out:
                    answer = self._last(task)
                    pairs = self._judge.judge(kind, task.item, answer.text, cut_off=answer.finish == "length")
                    yield Accepted(task, pairs)

    def last_answer(self, task: Task) -> str | None:
        """What the model wrote last for a task."""
        return self._last(task).text if task.key in self._faults else None

    def _next_round(self) -> list[Task]:
        """The tasks that the targets still lack. None are added while some are without an answer that may yet come."""
        tasks: list[Task] = []
        if any(tally.unanswered for tally in self.tallies.values()):
            return tasks
        for kind, tally in self.tallies.items():
            stop = min(self._most[kind], tally.taken + tally.target - tally.accepted)
            tasks += self._plan.tasks(kind, tally.taken, stop)
            tally.taken = max(tally.taken, stop)
            self._progress.expect(kind, tally.taken)
        return tasks

    async def _ask_all(self, tasks: Sequence[Task]) -> None:
        waiting = iter(tasks)

        async def take_turns() -> None:
            for task in waiting:
                if self.stopped is not None:
                    return
                await self._one(task)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._concurrency, len(tasks))):
                group.create_task(take_turns())

    async def _one(self, task: Task) -> None:
        try:
            self._faults[task.key] = await self._two_turns(task)
        except BudgetSpent as spent:
            self.stop(str(spent))
        except EndpointError as error:
            self.stop(str(error))
        except RequestRefused as error:
            self._miss(task, "refused", str(error))
        except Unreached as error:
            self._miss(task, "unreached", str(error))
        else:
            self._in_a_row = 0
            self._progress.done(task.kind, usable=self._faults[task.key] is None)
            await asyncio.sleep(0)  # answers out of the journal must not keep the others from their turn

    async def _two_turns(self, task: Task) -> tuple[str, str] | None:
        """What is wrong with the answer, or with the second one where the first could not be used."""
        first = await self._asker.ask(task.key, 0, self._prompts.messages(task.kind, task.item))
        if (fault := self._fault(task, first)) is None:
            return None
        messages = self._prompts.repair_messages(task.kind, task.item, first.text, fault[1])
        return self._fault(task, await self._asker.ask(task.key, 1, messages))

    def _fault(self, task: Task, answer: Answered) -> tuple[str, str] | None:
        try:
            self._judge.judge(task.kind, task.item, answer.text, cut_off=answer.finish == "length")
        except AnswerFault as fault:
            return fault.code, str(fault)
        return None

    def _miss(self, task: Task, code: str, why: str) -> None:
        self._without[task.key] = (code, why)
        self._progress.done(task.kind, usable=False)
        self._in_a_row += 1
        if self._in_a_row >= GIVE_UP:
            self.stop(f"{GIVE_UP} requests in a row got no answer, the last: {why}")

    def _settle(self, tasks: Sequence[Task]) -> None:
        """Judges each against those before it, in the plan's order."""
        for task in tasks:
            tally = self.tallies[task.kind]
            if task.key not in self._faults:
                code, why = self._without.get(task.key, ("", ""))
                if code == "refused":
                    tally.rejected.append(Rejected(task, code, why))
                else:
                    tally.unanswered += 1
                continue
            fault = self._faults[task.key]
            if fault is None and (like := self._duplicate(task)) is not None:
                self._out.add(task.key)
                fault = ("duplicate", f"nearly the same as the answer to {like}")
            if fault is not None:
                tally.rejected.append(Rejected(task, *fault))
            elif self._journal.answer(task.key, 1) is not None:
                tally.repaired += 1

    def _duplicate(self, task: Task) -> str | None:
        return self._alike.add(f"{task.kind}/{task.item.id}", self._last(task).text)

    def _last(self, task: Task) -> Answered:
        answer = self._journal.answer(task.key, 1) or self._journal.answer(task.key, 0)
        assert answer is not None, "a judged task has an answer"
        return answer
