"""Runs one step on the model: images to features, tokens through the language model, logits to draws.

Knows the model and the KV pools. It decides nothing: what runs is the scheduler's affair, what follows the engine's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch

from model.llava import LlavaModel
from worker.engine.paged_attention import KvCache, PagedAttention
from worker.engine.sampler import Draw, Sampler, SampleRow
from worker.engine.scheduler import Chunk, Step
from worker.engine.sequence import Sequence

logger = logging.getLogger(__name__)

IMAGE_FAILED = "an image of this request could not be encoded; see the worker's log"
NOT_FINITE = "the model computed logits that are not finite numbers for this request"


@dataclass(frozen=True)
class StepResult:
    """`computed` chunks have their keys and values in the cache; `failed` names the sequences that cannot go on."""

    computed: tuple[Chunk, ...]
    drawn: tuple[tuple[Sequence, Draw], ...]
    failed: tuple[tuple[Sequence, str], ...]


class Runner:
    def __init__(self, model: LlavaModel, cache: KvCache) -> None:
        self._model = model
        self._cache = cache
        self._sampler = Sampler(banned=[model.config.image_token_id])

    def run(self, step: Step) -> StepResult:
        """Computes a step. What it raises concerns every sequence of the step."""
        chunks: list[Chunk] = []
        failed: list[tuple[Sequence, str]] = []
        for chunk in step.chunks:
            if self._encode(chunk):
                chunks.append(chunk)
            else:
                failed.append((chunk.sequence, IMAGE_FAILED))
        if not chunks:
            return StepResult((), (), tuple(failed))
        hidden = self._forward(chunks)  # [T, D]
        drawing = [chunk.sequence for chunk in chunks if chunk.draws]
        drawn: list[tuple[Sequence, Draw]] = []
        if drawing:
            logits = self._model.language_model.logits(hidden[_last_rows(chunks)])  # [N, vocabulary]
            draws = self._sampler.sample(logits, [_row(sequence) for sequence in drawing])
            for sequence, draw in zip(drawing, draws, strict=True):
                if draw is None:
                    failed.append((sequence, NOT_FINITE))
                else:
                    drawn.append((sequence, draw))
        return StepResult(tuple(chunks), tuple(drawn), tuple(failed))

    def _encode(self, chunk: Chunk) -> bool:
        """Computes the features that the chunk needs, one image at a time; False if an image fails."""
        try:
            for slot in chunk.encode:
                [slot.features] = self._model.encode_images([slot.image])
        except Exception:
            logger.exception("encoding an image of request %s failed", chunk.sequence.request.id)
            return False
        return True

    def _forward(self, chunks: Many[Chunk]) -> torch.Tensor:
        """The chunks' tokens, end to end, through the language model: hidden states [T, D]."""
        device = self._cache.pools[0].device
        tokens = [token for chunk in chunks for token in chunk.sequence.tokens[chunk.start : chunk.end]]
        positions = torch.cat([torch.arange(chunk.start, chunk.end) for chunk in chunks]).to(device)  # [T]
        features = [part for chunk in chunks for part in _features(chunk)]
        embeddings = self._model.embed(torch.tensor(tokens, device=device), features)  # [T, D]
        attention = PagedAttention(self._cache, chunks)
        return self._model.language_model(embeddings, positions, attention)


def _features(chunk: Chunk) -> list[torch.Tensor]:
    """The parts of image features that fall into the chunk, in order."""
    parts = []
    for slot in chunk.sequence.images_in(chunk.start, chunk.end):
        assert slot.features is not None, "the scheduler asked for no features of an image in the chunk"
        parts.append(slot.features[max(chunk.start - slot.start, 0) : chunk.end - slot.start])
    return parts


def _last_rows(chunks: Many[Chunk]) -> list[int]:
    """Where the last token of each drawing chunk stands in the flat batch."""
    rows, end = [], 0
    for chunk in chunks:
        end += chunk.length
        if chunk.draws:
            rows.append(end - 1)
    return rows


def _row(sequence: Sequence) -> SampleRow:
    return SampleRow(
        sequence.request.sampling, sequence.prompt_vocabulary, sequence.answer_counts, sequence.answer_length
    )
