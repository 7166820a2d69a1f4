"""Runs one step on the model: image tiles to features, tokens through the language model, logits to draws.

Knows the model and the KV pools. It decides nothing: what runs is the scheduler's affair, what follows the engine's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch.profiler import record_function

from model.llava import LlavaModel
from worker.engine.cpu_attention import attention_of
from worker.engine.decode_graphs import DecodeGraphs
from worker.engine.features import ImageFeatures
from worker.engine.paged_attention import KvCache
from worker.engine.sampler import Draw, Sampler, SampleRow
from worker.engine.scheduler import Chunk, Encoding, Step
from worker.engine.sequence import Sequence

logger = logging.getLogger(__name__)

NOT_FINITE = "the model computed logits that are not finite numbers for this request"


@dataclass(frozen=True)
class StepResult:
    """`computed` chunks have their keys and values in the cache; `failed` names the sequences that cannot go on, and
    `broken` the images that could not be encoded, whoever holds them."""

    computed: tuple[Chunk, ...] = ()
    drawn: tuple[tuple[Sequence, Draw], ...] = ()
    failed: tuple[tuple[Sequence, str], ...] = ()
    broken: tuple[ImageFeatures, ...] = ()


class Runner:
    """`graphs` take the steps that are decodes alone."""

    def __init__(self, model: LlavaModel, cache: KvCache, graphs: DecodeGraphs | None = None) -> None:
        self._model = model
        self._graphs = graphs
        self._cache = cache
        self._sampler = Sampler(banned=[model.config.image_token_id])

    def run(self, step: Step) -> StepResult:
        """Computes a step. What it raises concerns every sequence of the step."""
        broken = tuple(encoding.features for encoding in step.encodings if not self._encode(encoding))
        chunks = [chunk for chunk in step.chunks if not _needs(chunk, broken)]
        if not chunks:
            return StepResult(broken=broken)
        drawing = [chunk.sequence for chunk in chunks if chunk.draws]
        drawn: list[tuple[Sequence, Draw]] = []
        failed: list[tuple[Sequence, str]] = []
        if self._graphs is not None and not step.prefills:
            logits = self._graphs.run(chunks)  # [N, vocabulary]
        else:
            with record_function("forward"):
                hidden = self._forward(chunks)  # [N, D]
            with record_function("head"):
                logits = self._model.language_model.logits(hidden) if drawing else hidden
        if drawing:
            with record_function("sampling"):
                draws = self._sampler.sample(logits, [_row(sequence) for sequence in drawing])
            for sequence, draw in zip(drawing, draws, strict=True):
                if draw is None:
                    failed.append((sequence, NOT_FINITE))
                else:
                    drawn.append((sequence, draw))
        return StepResult(tuple(chunks), tuple(drawn), tuple(failed), broken)

    def _encode(self, encoding: Encoding) -> bool:
        """Adds the features of some of an image's tiles, and merges them when all are there; False if that fails.

        On a CPU tiles go one at a time, each from memory of its own: a batch would be no faster, and so a tile's
        features never depend on what else the step encodes, nor on where its pixels lie.
        """
        features = encoding.features
        image = features.image
        assert image is not None, "the scheduler planned tiles of an image that is encoded already"
        try:
            pixels = image.pixels[encoding.start : encoding.end]
            for part in pixels.split(1) if self._model.device.type == "cpu" else (pixels,):
                features.encoded.append(self._model.encode_tiles(part.clone()))
            if encoding.end == features.tiles:
                features.finish(self._model.merge_tiles(torch.cat(features.encoded), image.layout))
        except Exception:
            logger.exception("encoding an image failed (%d tiles, %s)", features.tiles, image.digest[:16])
            return False
        return True

    def _forward(self, chunks: Many[Chunk]) -> torch.Tensor:
        """The chunks' tokens, end to end, through the language model: hidden states of those drawn from, [N, D]."""
        device = self._cache.pools[0].device
        tokens = [token for chunk in chunks for token in chunk.sequence.tokens[chunk.start : chunk.end]]
        positions = torch.cat([torch.arange(chunk.start, chunk.end) for chunk in chunks]).to(device)  # [T]
        features = [part for chunk in chunks for part in _features(chunk)]
        embeddings = self._model.embed(torch.tensor(tokens, device=device), features)  # [T, D]
        attention = attention_of(self._cache, chunks)
        wanted = torch.tensor(_last_rows(chunks), dtype=torch.int64, device=device)
        return self._model.language_model(embeddings, positions, attention, wanted)


def _features(chunk: Chunk) -> list[torch.Tensor]:
    """The parts of image features that fall into the chunk, in order."""
    parts = []
    for slot in chunk.sequence.images_in(chunk.start, chunk.end):
        assert slot.features is not None and slot.features.merged is not None, "a chunk reaches into a missing image"
        parts.append(slot.features.merged[max(chunk.start - slot.start, 0) : chunk.end - slot.start])
    return parts


def _needs(chunk: Chunk, broken: Many[ImageFeatures]) -> bool:
    return any(slot.features in broken for slot in chunk.sequence.images if slot.features is not None)


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
        sequence.request.sampling,
        sequence.prompt_vocabulary,
        sequence.answer_counts,
        sequence.answer_length,
        sequence.request.constraint,
    )
