"""What `tephra up` shows: one line for each process while the system starts, the summary, and what happens afterwards.

On a terminal the lines are drawn anew in place; elsewhere each change is printed once. Knows nothing of processes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deploy.supervisor import Stage

_COLOURS = {
    Stage.STARTING: "yellow",
    Stage.LOADING: "yellow",
    Stage.READY: "green",
    Stage.RESTARTING: "yellow",
    Stage.GIVEN_UP: "red",
}
_MARKS = {Stage.READY: "✓", Stage.GIVEN_UP: "✗"}


class StartDisplay:
    """Observer of the parts while they start (a context manager), and of what befalls them later."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, _Row] = {}
        self._live: Live | None = None

    def __enter__(self) -> StartDisplay:
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=10)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def stage(self, part: str, stage: Stage) -> None:
        row = self._rows.get(part)
        if row is None:
            row = self._rows[part] = _Row(part)
        if not row.move(stage):
            return
        if not self._console.is_terminal or (self._live is None and stage is Stage.READY):
            self._console.print(f"{part}: {stage.value}{row.seconds_text()}", highlight=False)

    def say(self, line: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        self._console.print(Text(f"{stamp} {line}"), soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for row in self._rows.values():
            table.add_row(*row.cells())
        return table


class _Row:
    """One process: where it stands and since when."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.stage: Stage | None = None
        self._began = time.monotonic()
        self._ended: float | None = None
        self._spinner = Spinner("dots")

    def move(self, stage: Stage) -> bool:
        """Takes the new stage; false if it is the old one."""
        if stage is self.stage:
            return False
        if stage is Stage.STARTING:
            self._began, self._ended = time.monotonic(), None
        elif stage in _MARKS:
            self._ended = time.monotonic()
        self.stage = stage
        return True

    def seconds_text(self) -> str:
        return f" ({self._seconds():.1f} s)" if self.stage is Stage.READY else ""

    def cells(self) -> tuple[RenderableType, ...]:
        stage = self.stage or Stage.STARTING
        mark: RenderableType = Text(_MARKS[stage], style=_COLOURS[stage]) if stage in _MARKS else self._spinner
        return mark, self.part, Text(stage.value, style=_COLOURS[stage]), Text(f"{self._seconds():.1f} s", style="dim")

    def _seconds(self) -> float:
        return (self._ended or time.monotonic()) - self._began


def print_summary(rows: Sequence[tuple[str, str]], example: str, console: Console) -> None:
    """Addresses, and an example to paste: its lines are left whole, so that they can be copied."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    title = "Tephra is ready · Ctrl-C stops everything"
    console.print(Panel(table, title=title, title_align="left", border_style="green", expand=False))
    console.print(Text(example), soft_wrap=True)
    console.print()
