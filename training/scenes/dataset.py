"""Writes scenes as a data set in LLaVA's conversation format: images/ and one JSON file.

Restartable: scenes are written in chunks; a chunk whose rows are on disk is not composed again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.scenes.assets import require_all
from training.scenes.backgrounds import SPLITS
from training.scenes.catalogue import Catalogue, drawn_catalogue, full_catalogue
from training.scenes.compose import Composer
from training.scenes.mix import MIXES, Mix
from training.scenes.scene import Scene, Turn

CHUNK = 100  # scenes per unit of work

_JPEG_QUALITY = 95
_INDEPENDENT_SHARE = 0.8


class DatasetError(RuntimeError):
    """A data set cannot be written as asked."""


@dataclass(frozen=True)
class DatasetSummary:
    """What was written: `file` is the conversation file, `turns` counts turns per family."""

    file: Path
    scenes: int
    turns: dict[str, int]


@dataclass(frozen=True)
class _Work:
    """All that a worker process needs to know."""

    out_dir: Path
    split: str
    seed: int
    mix: Mix
    count: int
    drawn_only: bool
    cache_dir: Path | None

    @property
    def chunks(self) -> int:
        return -(-self.count // CHUNK)

    def rows_file(self, chunk: int) -> Path:
        return self.out_dir / "rows" / f"{chunk:05d}.jsonl"

    def catalogue(self) -> Catalogue:
        return drawn_catalogue() if self.drawn_only else full_catalogue()


def write_dataset(
    out_dir: Path,
    split: str,
    count: int,
    seed: int,
    mix: Mix | str,
    *,
    processes: int = 2,
    drawn_only: bool = False,
    cache_dir: Path | None = None,
    show_progress: bool = True,
) -> DatasetSummary:
    """Write scenes 0..count-1 of `split` to `out_dir`/`split`.json and `out_dir`/images.

    `mix` is a Mix or the name of one ("caption", "instruct"). `drawn_only` needs no installed package: drawn shapes,
    words in Pillow's own font, plain backgrounds. Raises MissingAssetError where a package is missing, and DatasetError
    where `out_dir` holds a different data set. Running it again continues, or finds the work done.
    """
    if split not in SPLITS:
        raise DatasetError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if isinstance(mix, str):
        if mix not in MIXES:
            raise DatasetError(f"unknown mix {mix!r}: use one of {', '.join(MIXES)}")
        mix = MIXES[mix]
    if count < 1:
        raise DatasetError(f"count is {count}: a data set has at least one scene")
    if not drawn_only:
        require_all()
    work = _Work(Path(out_dir), split, seed, mix, count, drawn_only, cache_dir)
    _claim(work)
    target = work.out_dir / f"{split}.json"
    if not target.exists():
        pending = [chunk for chunk in range(work.chunks) if not work.rows_file(chunk).exists()]
        with _progress(show_progress) as progress:
            task = progress.add_task(f"{split} scenes", total=count, completed=count - len(pending) * CHUNK)
            for chunk in _run(work, pending, processes):
                progress.update(task, advance=min(CHUNK, count - chunk * CHUNK))
        _join(work, target)
    rows = json.loads(target.read_text("utf-8"))
    return DatasetSummary(target, len(rows), dict(Counter(family for row in rows for family in row["families"])))


def conversation(scene: Scene, purpose: str) -> tuple[Turn, ...]:
    """The turns of a scene that a data set of `purpose` ("caption" or "instruct") uses."""
    return (scene.caption,) if purpose == "caption" else scene.turns


def row(scene: Scene, identity: str, image: str, purpose: str) -> dict[str, Any]:
    """One LLaVA row. The first question carries the image.

    Most rows say that their questions are independent; every fifth is a conversation, in which answers may be looked up
    in earlier ones. `families`, `layout`, `size` (width, height) and `objects` (name, box of the ink and edges of
    letters, in pixels) are extra keys.
    """
    turns = conversation(scene, purpose)
    apart = len(turns) > 1 and Random(f"turns/{identity}").random() < _INDEPENDENT_SHARE
    talk = []
    for place, turn in enumerate(turns):
        talk.append({"from": "human", "value": ("<image>\n" if place == 0 else "") + turn.question})
        talk.append({"from": "gpt", "value": turn.answer})
    return {
        "id": identity,
        "image": image,
        "conversations": talk,
        **({"turns": "independent"} if apart else {}),
        "layout": str(scene.layout),
        "families": [str(turn.family) for turn in turns],
        "size": scene.picture.size,
        "objects": [{"name": placed.name, "box": placed.box, "edges": placed.edges} for placed in scene.objects],
    }


def _claim(work: _Work) -> None:
    """Record what this folder holds, and refuse to mix two data sets in one."""
    (work.out_dir / "images").mkdir(parents=True, exist_ok=True)
    (work.out_dir / "rows").mkdir(exist_ok=True)
    stamp = work.out_dir / f"{work.split}.recipe.json"
    wanted = json.dumps(
        {
            "split": work.split,
            "seed": work.seed,
            "count": work.count,
            "mix": asdict(work.mix),
            "catalogue": work.catalogue().digest,
        },
        indent=1,
    )
    if stamp.exists():
        if stamp.read_text("utf-8") != wanted:
            raise DatasetError(f"{work.out_dir} holds scenes of another recipe ({stamp.name}): use another folder")
    elif any((work.out_dir / "rows").iterdir()) or any(work.out_dir.glob("*.recipe.json")):
        raise DatasetError(f"{work.out_dir} holds another data set: use another folder")
    else:
        stamp.write_text(wanted, "utf-8")


def _run(work: _Work, chunks: list[int], processes: int) -> Iterator[int]:
    if processes <= 1 or len(chunks) <= 1:
        _start(work)
        yield from map(_write_chunk, chunks)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(processes, len(chunks)), initializer=_start, initargs=(work,)) as pool:
        yield from pool.imap_unordered(_write_chunk, chunks)


_current: tuple[_Work, Composer] | None = None  # what this worker process works on


def _start(work: _Work) -> None:
    global _current
    composer = Composer(work.catalogue(), work.split, work.seed, work.mix, cache_dir=work.cache_dir)
    _current = (work, composer)


def _write_chunk(chunk: int) -> int:
    assert _current is not None, "the worker was not started"
    work, composer = _current
    lines = []
    for index in range(chunk * CHUNK, min(work.count, (chunk + 1) * CHUNK)):
        scene = composer.scene(index)
        name = f"images/{work.split}-{index:06d}.jpg"
        scene.picture.save(work.out_dir / name, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        lines.append(json.dumps(row(scene, f"{work.split}-{index:06d}", name, work.mix.purpose)))
    part = work.rows_file(chunk).with_suffix(".part")
    part.write_text("\n".join(lines) + "\n", "utf-8")
    os.replace(part, work.rows_file(chunk))
    return chunk


def _join(work: _Work, target: Path) -> None:
    """Write all rows as one JSON file, then drop the chunks."""
    lines = [line for chunk in range(work.chunks) for line in work.rows_file(chunk).read_text("utf-8").splitlines()]
    part = target.with_suffix(".part")
    part.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")
    os.replace(part, target)
    for chunk in range(work.chunks):
        work.rows_file(chunk).unlink()


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, disable=not shown)
