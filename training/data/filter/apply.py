"""`tephra data filter`, from file to file: once through for the phrases, once more for the rows that are taken."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import orjson
from rich.console import Console

from training.data.errors import DataError
from training.data.filter.captions import Caption, CaptionFile
from training.data.filter.noun_phrases import Tagger, tagger
from training.data.filter.selection import Counts, Rule, Selection
from training.data.rows import BadRow, OnBad, Rejects, RowWriter, row_bar

_CHUNK = 2000  # captions that a process tags at a time


@dataclass(frozen=True)
class Filtered:
    """What came of it."""

    counts: Counts
    rejected: int


def filter_captions(
    file: Path,
    out: Path,
    rule: Rule,
    *,
    tagger_name: str = "brill",
    field: str = "caption",
    processes: int = 1,
    on_bad: OnBad = OnBad.STOP,
    console: Console | None = None,
) -> Filtered:
    """Writes the rows that the rule takes, in their order. Raises DataError, OSError."""
    if out.resolve() == file.resolve():
        raise DataError(f"{out}: expected another file than the one that is read")
    tagger(tagger_name)  # what is missing is said before hours of work
    out.parent.mkdir(parents=True, exist_ok=True)
    bad = Rejects(on_bad, out.with_suffix(".rejects.jsonl"))
    with bad as rejects, Selection(rule, out.parent, CaptionFile(file).bytes) as selection:
        with row_bar("noun phrases", CaptionFile(file).bytes, console) as bar:
            captions = CaptionFile(file, field, bar.read)
            for phrases in tagged(_good(captions, rejects), tagger_name, processes):
                selection.add(phrases)
                bar.row()
        selection.finish()
        number = 0
        with row_bar("rows", CaptionFile(file).bytes, console) as bar, RowWriter(out) as writer:
            for caption in CaptionFile(file, field, bar.read):
                if isinstance(caption, BadRow):
                    continue  # told of in the first pass
                if selection.takes(number):
                    writer.write(orjson.dumps(caption.row))
                number += 1
                bar.row()
        return Filtered(selection.counts, rejects.count)


def tagged(captions: Iterable[str], tagger_name: str, processes: int) -> Iterator[set[str]]:
    """The phrases of each caption, in order. Only a few chunks are held at a time."""
    if processes == 1:
        yield from map(tagger(tagger_name), captions)
        return
    waiting: deque[Future[list[set[str]]]] = deque()
    source = iter(captions)
    # spawn: forked threads of torch or numpy would hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(tagger_name,)) as pool:
        while chunk := list(islice(source, _CHUNK)):
            waiting.append(pool.submit(_tag, chunk))
            if len(waiting) > 2 * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _good(captions: CaptionFile, rejects: Rejects) -> Iterator[str]:
    for caption in captions:
        if isinstance(caption, Caption):
            yield caption.text
        else:
            rejects.add(caption)


_TAGGER: list[Tagger] = []  # of a process of the pool


def _start(name: str) -> None:
    _TAGGER.append(tagger(name))


def _tag(captions: list[str]) -> list[set[str]]:
    return [_TAGGER[0](caption) for caption in captions]
