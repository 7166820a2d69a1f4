"""What a person sees while answers come: bars by kind, tokens, money, retries; plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from training.data.instruct.budget import Prices
from training.data.instruct.journal import Spent
from training.data.instruct.kinds import Kind

_LINE_SECONDS = 15.0  # between two lines where there is no terminal


@dataclass
class _Counts:
    expected: int = 0
    usable: int = 0
    unusable: int = 0

    @property
    def done(self) -> int:
        return self.usable + self.unusable


class RunProgress:
    """A context manager."""

    def __init__(self, console: Console, prices: Prices, spent: Callable[[], Spent]) -> None:
        self.retries: Callable[[], int] = lambda: 0
        self._console = console
        self._prices = prices
        self._spent = spent
        self._counts = {kind: _Counts() for kind in Kind}
        self._shown = 0.0
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[Kind, TaskID] = {kind: self._bars.add_task(kind, total=0, note="") for kind in Kind}

    def __enter__(self) -> RunProgress:
        self._bars.start()
        self._shown = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def expect(self, kind: Kind, tasks: int) -> None:
        self._counts[kind].expected = tasks
        self._bars.update(self._tasks[kind], total=tasks)

    def done(self, kind: Kind, *, usable: bool) -> None:
        counts = self._counts[kind]
        if usable:
            counts.usable += 1
        else:
            counts.unusable += 1
        note = f"{counts.unusable} not usable · {self._bill()}"
        self._bars.update(self._tasks[kind], completed=counts.done, note=note)
        if not self._console.is_terminal and time.monotonic() - self._shown >= _LINE_SECONDS:
            self._shown = time.monotonic()
            state = ", ".join(f"{kind} {counts.done}/{counts.expected}" for kind, counts in self._counts.items())
            self._console.print(f"{state}; {self._bill()}", highlight=False)

    def _bill(self) -> str:
        spent = self._spent()
        cost = f" · {self._prices.cost(spent.used):.2f} spent" if self._prices != Prices() else ""
        retries = f" · {self.retries()} retries" if self.retries() else ""
        return f"{spent.used.total:,} tokens{cost}{retries}"
