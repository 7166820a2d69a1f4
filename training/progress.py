"""What a person sees while a model learns, and the log that a program reads afterwards (one JSON object a step)."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """A progress bar with the running loss and tokens a second; a plain line now and then where there is no terminal."""

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
    """One line of JSON a step, written by the main process only."""

    def __init__(self, file: Path, active: bool) -> None:
        self.steps = 0
        self.tokens = 0
        self._losses: list[float] = []
        self._active = active
        self._file = file
        if active:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("", "utf-8")

    def write(self, *, step: int, loss: float, tokens: int, norm: float, rate: float, positions: int, **more: float) -> None:
        self.steps += 1
        self.tokens += tokens
        self._losses.append(loss)
        if self._active:
            line = {"step": step, "loss": loss, "tokens": tokens, "norm": norm, "rate": rate, "positions": positions, **more}
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")

    def recent_loss(self) -> float:
        """Mean over the last tenth of the steps."""
        recent = deque(self._losses, maxlen=max(1, len(self._losses) // 10))
        return sum(recent) / max(1, len(recent))
