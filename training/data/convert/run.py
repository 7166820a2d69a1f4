"""One published format into a file of rows. Memory grows with distinct pictures, by their names alone."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from training.data.convert.base import Converter, Exchange, Item, Passed, Settings, Sources
from training.data.convert.conversations import Layout, item_fault
from training.data.errors import DataError
from training.data.rows import BadRow, OnBad, Rejects, RowBar, RowWriter, Spill, row_bar

_GROUPS = 4096  # pictures whose questions are held together
_SHOWN = 3


@dataclass(frozen=True)
class Report:
    """What a conversion made. `missing` names pictures that are not below the image folder, the first of them."""

    rows: int
    exchanges: int
    rejected: int
    left_out: Mapping[str, int]  # by reason
    missing: int
    missing_names: tuple[str, ...]
    samples: tuple[dict[str, Any], ...]


def convert(
    converter: Converter,
    files: Mapping[str, Path],
    out: Path,
    settings: Settings | None = None,
    *,
    on_bad: OnBad = OnBad.STOP,
    image_folder: Path | None = None,
    dry_run: bool = False,
    console: Console | None = None,
) -> Report:
    """Reads `files` (by role) and writes `out`, and `out`.rejects.jsonl where rows were rejected.

    With an image folder, pictures that are not there are counted. A dry run writes nothing. Raises DataError.
    """
    _check_roles(converter, files)
    work = _Work(converter, settings or Settings(), image_folder)
    total = sum(_size(file) for file in files.values())
    with contextlib.ExitStack() as stack:
        rejects = stack.enter_context(Rejects(on_bad, out.with_name(out.name + ".rejects.jsonl"), keep=not dry_run))
        writer = None if dry_run else stack.enter_context(RowWriter(out))
        bar = stack.enter_context(row_bar(converter.name, total, console))
        sources = Sources(files, bar.read)
        for row in work.rows(sources, rejects, bar, None if dry_run else out.parent):
            if writer is not None:
                writer.write(orjson.dumps(row))
    return work.report(rejects.count)


class _Work:
    def __init__(self, converter: Converter, settings: Settings, image_folder: Path | None) -> None:
        self._converter, self._settings, self._folder = converter, settings, image_folder
        self._layout = Layout(converter, settings)
        self._rows = self._exchanges = self._missing = 0
        self._left_out: Counter[str] = Counter()
        self._missing_names: list[str] = []
        self._samples: list[dict[str, Any]] = []

    def rows(self, sources: Sources, rejects: Rejects, bar: RowBar, folder: Path | None) -> Iterator[dict[str, Any]]:
        made = (
            self._merged(sources, rejects, bar, folder) if self._converter.merges else self._each(sources, rejects, bar)
        )
        for row in made:
            self._rows += 1
            self._exchanges += sum(turn["from"] == "gpt" for turn in row["conversations"])
            if len(self._samples) < _SHOWN:
                self._samples.append(row)
            self._look_for(row.get("image"))
            yield row

    def report(self, rejected: int) -> Report:
        left_out = Counter(self._left_out)
        if self._layout.left_out:
            left_out["not drawn"] = self._layout.left_out
        return Report(
            self._rows,
            self._exchanges,
            rejected,
            left_out,
            self._missing,
            tuple(self._missing_names),
            tuple(self._samples),
        )

    def _items(self, sources: Sources, rejects: Rejects, bar: RowBar) -> Iterator[Item]:
        for said in self._converter.read(sources, self._settings):
            bar.row()
            match said:
                case Item():
                    fault = item_fault(said, text_only=self._converter.text_only)
                    if fault is None:
                        yield said
                    else:
                        rejects.add(BadRow(said.where, fault, said.exchanges))
                case BadRow():
                    rejects.add(said)
                case Passed(reason):
                    self._left_out[reason] += 1

    def _each(self, sources: Sources, rejects: Rejects, bar: RowBar) -> Iterator[dict[str, Any]]:
        for item in self._items(sources, rejects, bar):
            yield from self._layout.rows(item.id, item.image, item.exchanges, item.system)

    def _merged(self, sources: Sources, rejects: Rejects, bar: RowBar, folder: Path | None) -> Iterator[dict[str, Any]]:
        """Groups in the order in which their first items came."""
        numbers: dict[str, int] = {}
        with Spill(folder) as spill:
            for item in self._items(sources, rejects, bar):
                number = numbers.setdefault(item.id, len(numbers))
                spill.add(
                    number // _GROUPS, orjson.dumps((number, item.id, item.image, list(map(tuple, item.exchanges))))
                )
            for bucket in spill.buckets():
                groups: dict[int, tuple[str, str | None, list[Exchange]]] = {}
                for number, id, image, exchanges in map(orjson.loads, bucket):
                    group = groups.setdefault(number, (id, image, []))
                    group[2].extend(Exchange(*exchange) for exchange in exchanges)
                for _, (id, image, said) in sorted(groups.items()):
                    yield from self._layout.rows(id, image, tuple(said))

    def _look_for(self, image: str | None) -> None:
        if self._folder is None or image is None or (self._folder / image).is_file():
            return
        self._missing += 1
        if len(self._missing_names) < _SHOWN:
            self._missing_names.append(image)


def _check_roles(converter: Converter, files: Mapping[str, Path]) -> None:
    known = {role.name for role in converter.roles}
    missing = [role for role in converter.roles if not role.optional and role.name not in files]
    if missing:
        wanted = ", ".join(f"{role.name} ({role.published})" for role in missing)
        raise DataError(f"{converter.name}: missing {wanted}")
    if unknown := sorted(files.keys() - known):
        raise DataError(f"{converter.name} reads {', '.join(sorted(known))}, not {', '.join(unknown)}")


def _size(file: Path) -> int:
    try:
        if file.is_dir():
            return sum(part.stat().st_size for part in file.iterdir())
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
