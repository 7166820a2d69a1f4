"""Draws rows by a recipe and writes them in a random order, each once.

A row's place in the order is a digest of its own words, keyed by the seed: so the order depends on nothing else, rows
that say the same about the same picture meet, and sorting is done bucket by bucket on disk. Memory does not grow with
the rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any

import orjson
from rich.console import Console

from training.data.errors import DataError
from training.data.mix.recipe import Dataset, Recipe
from training.data.mix.sampling import choose, shares
from training.data.rows import (
    BadRow,
    OnBad,
    Rejects,
    Row,
    RowBar,
    RowFile,
    RowWriter,
    Spill,
    image_paths,
    row_bar,
    shape_fault,
)

_DIGEST = 16  # bytes
_BUCKET = 24 << 20  # bytes of source files for each bucket
_SHOWN = 3


class Duplicates(StrEnum):
    DROP = "drop"
    KEEP = "keep"


@dataclass
class Drawn:
    """What became of one source. `rows` are those that can be used."""

    name: str
    file: str
    sampling: str
    rows: int = 0
    drawn: int = 0
    written: int = 0
    duplicates: int = 0
    missing_images: int = 0
    missing_names: list[str] = field(default_factory=list)
    absent: bool = False


@dataclass(frozen=True)
class MixReport:
    datasets: tuple[Drawn, ...]
    rejected: int
    already_there: bool = False

    @property
    def written(self) -> int:
        return sum(drawn.written for drawn in self.datasets)

    @property
    def absent(self) -> list[str]:
        """Files of the recipe that are not there."""
        return [drawn.file for drawn in self.datasets if drawn.absent]


def mix(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    on_bad: OnBad = OnBad.STOP,
    duplicates: Duplicates = Duplicates.DROP,
    image_folder: Path | None = None,
    any_count: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    console: Console | None = None,
) -> MixReport:
    """Reads the recipe's files below `data` and writes `out` and, beside it, `out`.mix.json, which says what was drawn.

    With an image folder, a row whose image is not there is a bad row. A mix that was written of the same files with the
    same recipe and seed is not written again. A dry run writes nothing and goes on past files that are not there.
    `any_count`: sources may have other numbers of rows than the recipe says. Raises DataError.
    """
    work = _Work(recipe, data, seed, image_folder, any_count, dry_run)
    record = out.with_name(out.name + ".mix.json")
    stamp = work.stamp(on_bad, duplicates)
    if not dry_run:
        if found := _written_before(out, record, stamp):
            return found
        if out.exists() and not overwrite:
            raise DataError(f"{out} is there and holds something else: choose another name, or say --overwrite")
    with contextlib.ExitStack() as stack:
        rejects = stack.enter_context(Rejects(on_bad, out.with_name(out.name + ".rejects.jsonl"), keep=not dry_run))
        writer = None if dry_run else stack.enter_context(RowWriter(out))
        bar = stack.enter_context(row_bar(recipe.name, work.bytes_to_read(), console))
        spill = stack.enter_context(Spill(None if dry_run else out.parent))
        work.draw(rejects, spill, bar)
        work.write(spill, writer, duplicates)
    report = MixReport(tuple(work.drawn), rejects.count)
    if not dry_run:
        _write_record(record, {"stamp": stamp, "recipe": recipe.name, "seed": seed, **asdict(report)})
    return report


class _Work:
    def __init__(
        self, recipe: Recipe, data: Path, seed: int, image_folder: Path | None, any_count: bool, dry_run: bool
    ) -> None:
        self._recipe, self._seed, self._folder = recipe, seed, image_folder
        self._any_count, self._dry_run = any_count, dry_run
        self._files = [data / dataset.path for dataset in recipe.datasets]
        self.drawn = [
            Drawn(dataset.name, str(file), dataset.drawn, absent=not file.is_file())
            for dataset, file in zip(recipe.datasets, self._files, strict=True)
        ]
        needed = [
            drawn.file
            for drawn, dataset in zip(self.drawn, recipe.datasets, strict=True)
            if drawn.absent and not dataset.optional
        ]
        if needed and not dry_run:
            raise DataError(f"{recipe.name}: not there: {', '.join(needed)}")
        sizes = [
            0 if drawn.absent else file.stat().st_size for drawn, file in zip(self.drawn, self._files, strict=True)
        ]
        self._bytes = sum(sizes)
        self._twice = sum(size for place, size in enumerate(sizes) if self._needs_count(place))
        self._buckets = max(1, min(1 << 16, self._bytes // _BUCKET))

    def bytes_to_read(self) -> int:
        return self._bytes + self._twice

    def stamp(self, on_bad: OnBad, duplicates: Duplicates) -> str:
        """Names everything that the output depends on."""
        stats = [None if drawn.absent else os.stat(drawn.file) for drawn in self.drawn]
        files = [stat and (stat.st_size, stat.st_mtime_ns) for stat in stats]
        known = (asdict(self._recipe), self._seed, str(on_bad), str(duplicates), str(self._folder), files)
        return hashlib.blake2b(orjson.dumps(known), digest_size=16).hexdigest()

    def draw(self, rejects: Rejects, spill: Spill, bar: RowBar) -> None:
        """Puts the drawn rows of all sources aside, by their place in the order."""
        counts = [self._count(place, bar) if self._needs_count(place) else 0 for place in range(len(self.drawn))]
        quotas = self._quotas(counts)
        for place, (dataset, drawn) in enumerate(zip(self._recipe.datasets, self.drawn, strict=True)):
            if drawn.absent:
                continue
            picks = dataset.sampling.picks(counts[place], self._chance(dataset, "draw"))
            share = choose(dataset.sampling.size(counts[place]), quotas[place], self._chance(dataset, "share"))
            for row in self._usable(place, bar, rejects):
                drawn.rows += 1
                if next(picks, False) and (self._recipe.total is None or next(share, False)):
                    drawn.drawn += 1
                    self._put(spill, place, dataset, row)
            self._hold_count(dataset, drawn)

    def write(self, spill: Spill, writer: RowWriter | None, duplicates: Duplicates) -> None:
        for records in spill.buckets():
            records.sort()  # by digest, then by source and row
            last = b""
            for record in records:
                digest, place = record[:_DIGEST], int.from_bytes(record[_DIGEST : _DIGEST + 4], "big")
                if digest == last and duplicates is Duplicates.DROP:
                    self.drawn[place].duplicates += 1
                    continue
                last = digest
                self.drawn[place].written += 1
                if writer is not None:
                    writer.write(record[_DIGEST + 12 :])

    def _needs_count(self, place: int) -> bool:
        dataset = self._recipe.datasets[place]
        return not self.drawn[place].absent and (dataset.sampling.needs_count or self._recipe.total is not None)

    def _count(self, place: int, bar: RowBar) -> int:
        return sum(1 for _ in self._usable(place, bar, None))

    def _quotas(self, counts: list[int]) -> list[int]:
        if self._recipe.total is None:
            return [0] * len(counts)
        sizes = [dataset.sampling.size(count) for dataset, count in zip(self._recipe.datasets, counts, strict=True)]
        total = min(self._recipe.total, sum(sizes)) if self._any_count or self._dry_run else self._recipe.total
        return shares(total, [dataset.weight for dataset in self._recipe.datasets], sizes)

    def _usable(self, place: int, bar: RowBar, rejects: Rejects | None) -> Iterator[dict[str, Any]]:
        """Rows that can be trained on, images below their folder. Bad ones go to `rejects`, if there are any."""
        dataset, drawn = self._recipe.datasets[place], self.drawn[place]
        source = RowFile(self._files[place], bar.read)
        for row in source:
            bar.row()
            fault = (
                row if isinstance(row, BadRow) else self._fault(source, row, dataset, drawn, told=rejects is not None)
            )
            if fault is None:
                assert isinstance(row, Row)
                yield row.value
            elif rejects is not None:
                rejects.add(fault)

    def _fault(self, source: RowFile, row: Row, dataset: Dataset, drawn: Drawn, *, told: bool) -> BadRow | None:
        if fault := shape_fault(row.value):
            return BadRow(source.where(row), fault, row.value)
        paths = image_paths(row.value)
        if dataset.images and paths:
            paths = [f"{dataset.images.rstrip('/')}/{path}" for path in paths]
            row.value["image"] = paths if isinstance(row.value["image"], list) else paths[0]
        if self._folder is None:
            return None
        absent = next((path for path in paths if not os.path.isfile(os.path.join(self._folder, path))), None)
        if absent is None:
            return None
        if told:
            drawn.missing_images += 1
            drawn.missing_names += [absent] if len(drawn.missing_names) < _SHOWN else []
        return None if self._dry_run else BadRow(source.where(row), f"image {absent} is not there", row.value)

    def _put(self, spill: Spill, place: int, dataset: Dataset, row: dict[str, Any]) -> None:
        said = orjson.dumps((row.get("image"), row["conversations"]), option=orjson.OPT_SORT_KEYS)
        digest = hashlib.blake2b(said, digest_size=_DIGEST, key=str(self._seed).encode()).digest()
        bucket = int.from_bytes(digest[:4], "big") * self._buckets >> 32
        number = self.drawn[place].drawn.to_bytes(8, "big")
        row["source"] = dataset.name
        spill.add(bucket, digest + place.to_bytes(4, "big") + number + orjson.dumps(row))

    def _hold_count(self, dataset: Dataset, drawn: Drawn) -> None:
        """The recipe's number of rows, unless any will do."""
        if self._any_count or self._dry_run:
            return
        if dataset.rows is not None and drawn.rows != dataset.rows:
            raise DataError(
                f"{drawn.file}: {drawn.rows:,} rows, but {self._recipe.name} is made of {dataset.rows:,}: "
                "say --any-count if that is as it should be"
            )
        if dataset.sampling.kind != "all" and dataset.sampling.asks_for_more_than(drawn.rows):
            raise DataError(
                f"{drawn.file}: {drawn.rows:,} rows, and {dataset.drawn} asks for more: "
                "say --any-count to take what is there"
            )

    def _chance(self, dataset: Dataset, use: str) -> Random:
        return Random(f"{self._seed}/{dataset.name}/{use}")


def _written_before(out: Path, record: Path, stamp: str) -> MixReport | None:
    if not out.is_file() or not record.is_file():
        return None
    try:
        found = orjson.loads(record.read_bytes())
        if found["stamp"] != stamp:
            return None
        return MixReport(tuple(Drawn(**drawn) for drawn in found["datasets"]), found["rejected"], already_there=True)
    except (ValueError, KeyError, TypeError):
        return None  # not a record of ours: the mix is not known to be there


def _write_record(record: Path, value: dict[str, Any]) -> None:
    part = record.with_name(record.name + ".part")
    part.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))
    os.replace(part, record)
