"""Rows become examples (tokens, labels, tiles), examples become flat batches.

The questions of a row with independent turns become branches behind one shared beginning (system message and picture):
each sees the beginning and itself, so that the picture is encoded once and no answer is given away by another.

The order of rows is a function of (seed, epoch) alone; rows of like length go together, so that the attention's padding
stays small. Images are decoded in loader processes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.data import Dataset, Sampler

from model.errors import ModelError
from model.image_file import decode_rgb
from model.images import ImagePreprocessor, PreparedImage
from model.prompts import LabelledPrompt, Prompter
from training.data.conversations import Conversation, questions
from training.data.errors import DataError

ImageView = Literal["base", "full"]


@dataclass(frozen=True)
class Example:
    """One row, ready for the model."""

    id: str
    token_ids: torch.Tensor  # [T] int64
    supervised: torch.Tensor  # [T] bool
    image: PreparedImage | None
    branches: torch.Tensor  # [T] int64: 0 is what all see, k the k-th of the independent questions

    @property
    def positions(self) -> torch.Tensor:
        """[T] int64: every branch goes on where the shared beginning ends."""
        shared = int((self.branches == 0).sum())
        sizes = self.branches.bincount()[1:].tolist()
        return torch.cat([torch.arange(shared), *(torch.arange(shared, shared + size) for size in sizes)])


@dataclass(frozen=True)
class Batch:
    """Rows laid end to end. `targets[i]` is the token that `hidden[predictors[i]]` must predict."""

    ids: tuple[str, ...]
    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64, from 0 in each row
    branches: torch.Tensor | None  # [T] int64; None: no row has any
    lengths: tuple[int, ...]
    predictors: torch.Tensor  # [N] int64 places in the flat batch
    targets: torch.Tensor  # [N] int64
    images: tuple[PreparedImage, ...]


class ExampleSet(Dataset[Example]):
    """Conversations through the checkpoint's own template. `view` "base" leaves AnyRes tiles out (early stages)."""

    def __init__(
        self,
        rows: Sequence[Conversation],
        prompter: Prompter,
        preprocessor: ImagePreprocessor,
        *,
        view: ImageView,
        max_length: int,
    ) -> None:
        self.rows = rows
        self._prompter = prompter
        self._preprocessor = preprocessor
        self._view = view
        self._max_length = max_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        try:
            image = self._image(row)
            layouts = [image.layout] if image else []
            talks = questions(row) if row.independent else [row.messages]
            prompts = [self._prompter.build_labelled(talk, layouts) for talk in talks]
        except (OSError, ModelError) as error:
            raise DataError(f"row {row.id}: {error}") from error
        example = _branched(row.id, prompts, image) if len(prompts) > 1 else _plain(row.id, prompts[0], image)
        if len(example.token_ids) > self._max_length:
            raise DataError(f"row {row.id}: {len(example.token_ids)} tokens, more than max_length {self._max_length}")
        return example

    def _image(self, row: Conversation) -> PreparedImage | None:
        if row.image is None:
            return None
        rgb = decode_rgb(row.image.read_bytes())
        prepare = self._preprocessor.base_view if self._view == "base" else self._preprocessor.prepare_rgb
        return prepare(rgb, row.id)


def flat_length(prompts: Sequence[LabelledPrompt]) -> int:
    """Tokens of the row whose questions were laid out so; of several, they are the row's independent questions."""
    example = _branched("", prompts, None) if len(prompts) > 1 else _plain("", prompts[0], None)
    return len(example.token_ids)


def _plain(row: str, prompt: LabelledPrompt, image: PreparedImage | None) -> Example:
    ids = torch.tensor(prompt.token_ids)
    return Example(row, ids, torch.tensor(prompt.supervised), image, torch.zeros_like(ids))


def _branched(row: str, prompts: Sequence[LabelledPrompt], image: PreparedImage | None) -> Example:
    """Lays down what all prompts begin with once, then the rest of each."""
    first = prompts[0]
    columns = zip(*(prompt.token_ids for prompt in prompts), strict=False)
    alike = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    shared = min(alike, *(prompt.supervised.index(True) for prompt in prompts))
    if image is not None and not _holds_image(first.token_ids[:shared], image):
        raise DataError(f"row {row}: the chat template puts the question before the image: turns cannot be independent")
    ids, supervised, branches = list(first.token_ids[:shared]), [False] * shared, [0] * shared
    for number, prompt in enumerate(prompts, 1):
        ids += prompt.token_ids[shared:]
        supervised += prompt.supervised[shared:]
        branches += [number] * (len(prompt.token_ids) - shared)
    return Example(row, torch.tensor(ids), torch.tensor(supervised), image, torch.tensor(branches))


def _holds_image(token_ids: Sequence[int], image: PreparedImage) -> bool:
    """Whether the image's run of equal tokens lies in `token_ids`."""
    return any(sum(1 for _ in run) >= image.layout.tokens for _, run in itertools.groupby(token_ids))


class LengthGroupedSampler(Sampler[list[int]]):
    """Batches of row indices: shuffled, sorted by length within windows of some batches, shuffled again.

    Every rank draws the same order and takes its own share of each global batch; a short last batch is left out.
    """

    def __init__(
        self, lengths: Sequence[int], batch: int, *, seed: int, rank: int, world: int, window: int = 50
    ) -> None:
        if batch % world:
            raise ValueError(f"a global batch of {batch} cannot be shared evenly by {world} processes")
        self._lengths, self._batch, self._seed, self._rank, self._world = lengths, batch, seed, rank, world
        self._window = window
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths) // self._batch

    def __iter__(self) -> Iterator[list[int]]:
        chance = random.Random(f"{self._seed}:{self._epoch}")
        order = list(range(len(self._lengths)))
        chance.shuffle(order)
        span = self._batch * self._window
        grouped = [
            index
            for at in range(0, len(order), span)
            for index in sorted(order[at : at + span], key=self._lengths.__getitem__)
        ]
        batches = [grouped[at : at + self._batch] for at in range(0, len(self) * self._batch, self._batch)]
        chance.shuffle(batches)
        return iter([batch[self._rank :: self._world] for batch in batches])


def collate(examples: Sequence[Example]) -> Batch:
    """Lays examples end to end. Raises DataError when none of them has an answer to learn from."""
    lengths = tuple(len(example.token_ids) for example in examples)
    token_ids = torch.cat([example.token_ids for example in examples])
    supervised = torch.cat([example.supervised for example in examples])
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    supervised[starts] = False  # nothing predicts a row's first token
    places = supervised.nonzero().squeeze(1)
    branched = any(bool(example.branches.any()) for example in examples)
    if not len(places):
        raise DataError(f"rows {', '.join(e.id for e in examples)}: no token is supervised")
    return Batch(
        ids=tuple(example.id for example in examples),
        token_ids=token_ids,
        positions=torch.cat([example.positions for example in examples]),
        branches=torch.cat([example.branches for example in examples]) if branched else None,
        lengths=lengths,
        predictors=places - 1,
        targets=token_ids[places],
        images=tuple(example.image for example in examples if example.image is not None),
    )
