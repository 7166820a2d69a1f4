"""`tephra data instruct`, from files to files: reads items and prompts, runs, writes rows, rejects and the report.

The folder holds journal.jsonl (what was paid for; keep it), data.jsonl, rejects.jsonl and report.html, of which the
last three are made anew from the journal each time.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from rich.console import Console

from training.data.errors import DataError
from training.data.instruct.asking import Asker, Patience
from training.data.instruct.budget import Budget, Limits, Prices
from training.data.instruct.endpoint import Endpoint, first_model
from training.data.instruct.items import Items
from training.data.instruct.journal import Journal, Settings, Spent
from training.data.instruct.judging import Judge
from training.data.instruct.kinds import Kind, counts_by_share, greatest_total
from training.data.instruct.plan import Plan
from training.data.instruct.progress import RunProgress
from training.data.instruct.prompts import Prompts, read_prompts
from training.data.instruct.report import KindReport, page
from training.data.instruct.rows import row_of
from training.data.instruct.run import Run, Tally
from training.data.rows import RowWriter


@dataclass(frozen=True)
class Asked:
    """What a user asks for."""

    out: Path
    url: str
    model: str | None = None
    api_key: str | None = None
    total: int | None = None  # rows; None: as many as the proportions allow
    seed: int = 0
    prompts: Path | None = None
    temperature: float = 0.7
    max_tokens: int = 1024
    limit_field: str = "max_tokens"
    concurrency: int = 16
    seconds: float = 300.0
    patience: Patience = field(default_factory=Patience)
    limits: Limits = field(default_factory=Limits)
    prices: Prices = field(default_factory=Prices)
    spare: float = 0.25


@dataclass(frozen=True)
class Outcome:
    tallies: dict[Kind, Tally]
    spent: Spent
    stopped: str | None
    report: Path

    @property
    def complete(self) -> bool:
        """Every kind has the rows that were asked for."""
        return self.stopped is None and all(tally.accepted == tally.target for tally in self.tallies.values())


def targets_of(asked: int | None, items: int) -> dict[Kind, int]:
    """Raises DataError: more than the items allow."""
    most = greatest_total(items)
    if asked is not None and asked > most:
        raise DataError(f"--rows {asked}: {items} pictures allow at most {most} in the proportions 58:23:77")
    return counts_by_share(most if asked is None else asked)


async def construct(asked: Asked, items: Items, console: Console) -> Outcome:
    """Raises DataError, OSError."""
    targets = targets_of(asked.total, len(items.items))
    prompts, judge = read_prompts(asked.prompts), Judge(asked.prompts)
    model = asked.model or await first_model(asked.url, asked.api_key)
    settings = Settings(model=model, temperature=asked.temperature, max_tokens=asked.max_tokens, prompts=prompts.digest)
    endpoint = Endpoint(
        asked.url,
        model,
        api_key=asked.api_key,
        temperature=asked.temperature,
        max_tokens=asked.max_tokens,
        limit_field=asked.limit_field,
        seconds=asked.seconds,
    )
    with Journal(asked.out / "journal.jsonl", settings) as journal:
        notes = [*items.notes, *journal.notes]
        for note in notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        if journal.answers:
            console.print(
                f"{journal.answers} answers are in {journal.file} already",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        plan = Plan(items.items, asked.seed)
        budget = Budget(asked.limits, asked.prices, lambda: journal.spent.most)
        asker = Asker(endpoint, journal, budget, max_tokens=asked.max_tokens, patience=asked.patience)
        progress = RunProgress(console, asked.prices, lambda: journal.spent)
        progress.retries = lambda: asker.retries
        run = Run(
            plan,
            targets,
            prompts=prompts,
            judge=judge,
            journal=journal,
            asker=asker,
            concurrency=asked.concurrency,
            spare=asked.spare,
            progress=progress,
        )
        async with endpoint:
            with progress, _interruptible(run):
                await run.go()
                await journal.drain()
        report = _write(asked, run, journal, prompts, settings, notes)
        return Outcome(run.tallies, journal.spent, run.stopped, report)


@contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    """Ctrl-C or SIGTERM: what is under way is waited for; at the second, it is given up."""
    loop = asyncio.get_running_loop()
    whole = asyncio.current_task()
    assert whole is not None

    def interrupted() -> None:
        if run.stopped is not None:
            whole.cancel()
        run.stop("interrupted")

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, interrupted)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _write(asked: Asked, run: Run, journal: Journal, prompts: Prompts, settings: Settings, notes: list[str]) -> Path:
    kinds = {kind: KindReport() for kind in Kind}
    with RowWriter(asked.out / "data.jsonl") as rows:
        for accepted in run.accepted():
            row = row_of(accepted, asked.seed, prompts.descriptions)
            rows.write(orjson.dumps(row))
            kinds[accepted.task.kind].add(accepted, row, asked.seed)
    with RowWriter(asked.out / "rejects.jsonl") as rejects:
        for tally in run.tallies.values():
            for one in tally.rejected:
                entry = {
                    "id": one.task.item.id,
                    "image": one.task.item.image,
                    "kind": one.task.kind,
                    "code": one.code,
                    "reason": one.why,
                    "answer": run.last_answer(one.task),
                }
                rejects.write(orjson.dumps(entry))
    file = asked.out / "report.html"
    part = file.with_name(file.name + ".part")
    text = page(
        settings, run.tallies, kinds, journal.spent, asked.prices, seed=asked.seed, stopped=run.stopped, notes=notes
    )
    part.write_text(text, "utf-8")
    os.replace(part, file)
    return file
