"""A bar for work on rows: how much of the files is read, how many rows, and how many a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_EVERY = 500  # rows between two looks at the bar


class RowBar:
    """One bar. Bytes move it, rows are counted beside it."""

    def __init__(self, progress: Progress, task: Task) -> None:
        self._progress, self._task = progress, task
        self.rows = 0
        self._bytes = 0

    def read(self, bytes: int) -> None:
        self._bytes += bytes
        if self._bytes > 1 << 20:
            self._show()

    def row(self) -> None:
        self.rows += 1
        if self.rows % _EVERY == 0:
            self._show()

    def _show(self) -> None:
        self._progress.update(self._task.id, advance=self._bytes, rows=self.rows)
        self._bytes = 0


@contextmanager
def row_bar(label: str, total_bytes: int, console: Console | None) -> Iterator[RowBar]:
    """`console` None: no bar is shown."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Rows(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console or Console(stderr=True), disable=console is None) as progress:
        number = progress.add_task(label, total=total_bytes, rows=0)
        bar = RowBar(progress, progress.tasks[-1])
        yield bar
        progress.update(number, completed=total_bytes, rows=bar.rows)


class _Rows(ProgressColumn):
    def render(self, task: Task) -> Text:
        rows, seconds = task.fields["rows"], task.elapsed or 0
        rate = f" · {rows / seconds:,.0f}/s" if seconds > 0.5 else ""
        return Text(f"{rows:,} rows{rate}", style="progress.download")
