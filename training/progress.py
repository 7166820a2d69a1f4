"""What a person sees while a model learns, and the log that a program reads afterwards (one JSON object a step)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(frozen=True)
class RunSummary:
    """What a finished run says of itself (summary.json)."""

    recipe: str
    steps: int
    tokens: int  # learned from, over all processes
    seconds: float
    final_loss: float  # mean of the last tenth of the steps


class TrainingProgress:
    """A progress bar with running loss and tokens a second; a plain line now and then where there is no terminal."""

    def __init__(self, console: Console, name: str, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._done = 0
        self._tokens = 0
        self._loss = 0.0
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} tokens/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(name, total=steps, loss=0.0, speed=0.0)

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, loss: float, tokens: int) -> None:
        """One step more; `tokens` are all positions computed, padding and image tokens included."""
        self._done += 1
        self._tokens += tokens
        self._loss = loss if self._done == 1 else 0.95 * self._loss + 0.05 * loss
        speed = self._tokens / (time.monotonic() - self._started)
        self._progress.update(self._task, advance=1, loss=self._loss, speed=speed)
        if not self._console.is_terminal and (self._done % 20 == 0 or self._done == self._steps):
            left = (self._steps - self._done) * (time.monotonic() - self._started) / self._done
            self._console.print(
                f"step {self._done}/{self._steps}  loss {self._loss:.4f}  {speed:.0f} tokens/s  {left:.0f} s left"
            )


class StepLog:
    """One line of JSON a step, written by the main process only, and the summary at the end."""

    def __init__(self, file: Path, active: bool) -> None:
        self._tokens = 0
        self._losses: list[float] = []
        self._active = active
        self._file = file
        if active:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("", "utf-8")

    def write(self, step: Mapping[str, float], *, tokens: int) -> None:
        """`step` holds the loss and whatever else is worth keeping; `tokens` were learned from."""
        self._tokens += tokens
        self._losses.append(step["loss"])
        if self._active:
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({**step, "tokens": tokens}) + "\n")

    def summarise(self, file: Path, recipe: str, seconds: float) -> RunSummary:
        """Writes what the finished run says of itself."""
        recent = self._losses[-max(1, len(self._losses) // 10) :]
        loss = sum(recent) / max(1, len(recent))
        summary = RunSummary(recipe, len(self._losses), self._tokens, round(seconds, 1), loss)
        file.write_text(json.dumps(asdict(summary), indent=2) + "\n", "utf-8")
        return summary
