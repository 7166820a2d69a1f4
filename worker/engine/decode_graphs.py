"""Decode steps recorded once and replayed, for devices on which launching hundreds of operations costs the most.

A recording runs over tensors that stay where they are: tokens, positions and the places of keys are written into them
before each replay. There is one for each padded number of rows and each padded number of keys, made at start. Rows that
fill up repeat the first: they write what it writes, where it writes it. What runs is the model's own code; how it is
recorded is a `Recorder`'s affair.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

from model.llava import LlavaModel
from worker.engine.config import EngineConfig
from worker.engine.paged_attention import KvCache, Singles, attend_singles, padded_keys
from worker.engine.scheduler import Chunk

logger = logging.getLogger(__name__)

Replay = Callable[[], torch.Tensor]


class Recorder(Protocol):
    def record(self, run: Replay) -> Replay:
        """Runs it at least once; what is returned repeats that over the same tensors, into the same result."""


class CudaRecorder:
    """CUDA graphs, which share one pool of memory: never two of them replay at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Replay) -> Replay:
        # What libraries set up at their first call cannot be captured, so it goes before, on a stream aside.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


class DecodeGraphs:
    """Of one model and its KV cache, for up to `rows` answers of up to `context` tokens. Slow to make."""

    def __init__(self, model: LlavaModel, cache: KvCache, recorder: Recorder, *, rows: int, context: int) -> None:
        self._language = model.language_model
        self._cache = cache
        context = context if cache.sliding_window is None else min(context, cache.sliding_window)
        self._rows = [*(2**power for power in range((rows - 1).bit_length())), rows]
        self._keys = _steps_to(context)
        device = cache.pools[0].device
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self._singles = Singles(
            written=torch.zeros(rows, dtype=torch.int64, device=device),
            slots=torch.zeros(rows, self._keys[-1], dtype=torch.int64, device=device),
            counts=torch.ones(rows, dtype=torch.int64, device=device),
        )
        # The largest first: the memory it takes serves the smaller ones.
        self._replays = {
            (row, key): recorder.record(partial(self._compute, row, key))
            for row in reversed(self._rows)
            for key in reversed(self._keys)
        }

    def run(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Chunks of one token each -> logits [N, vocabulary], valid until the next call. Raises ValueError for more
        rows or longer answers than were recorded."""
        singles = Singles.of(self._cache, chunks)
        count, width = singles.slots.shape
        rows = next((size for size in self._rows if size >= count), None)
        keys = next((size for size in self._keys if size >= width), None)
        if rows is None or keys is None:
            raise ValueError(
                f"{count} rows of {width} keys: at most {self._rows[-1]} of {self._keys[-1]} were recorded"
            )
        tokens = [chunk.sequence.tokens[chunk.start] for chunk in chunks]
        positions = [chunk.start for chunk in chunks]
        own = self._singles
        for place, values in (
            (self._tokens[:rows], torch.tensor(tokens)),
            (self._positions[:rows], torch.tensor(positions)),
            (own.written[:rows], singles.written),
            (own.slots[:rows, :width], singles.slots),
            (own.counts[:rows], singles.counts),
        ):
            place.copy_(_filled_up(values, rows))
        own.slots[:rows, width:keys] = own.slots[:rows, :1]  # hidden, and its own
        return self._replays[rows, keys]()[:count]

    def _compute(self, rows: int, keys: int) -> torch.Tensor:
        """[rows, vocabulary], from what stands in the tensors."""
        own = self._singles
        singles = Singles(own.written[:rows], own.slots[:rows, :keys], own.counts[:rows])
        embeddings = self._language.embed(self._tokens[:rows])
        attention = _SinglesAttention(self._cache, singles)
        return self._language.logits(self._language(embeddings, self._positions[:rows], attention))


class _SinglesAttention:
    """`model.attention.Attention` of single tokens."""

    def __init__(self, cache: KvCache, singles: Singles) -> None:
        self._cache = cache
        self._singles = singles

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        pool = self._cache.pools[layer]
        pool[0].index_copy_(1, self._singles.written, k.transpose(0, 1))
        pool[1].index_copy_(1, self._singles.written, v.transpose(0, 1))
        return attend_singles(q, pool, self._singles)


def cuda_graphs(model: LlavaModel, cache: KvCache, config: EngineConfig, context: int) -> DecodeGraphs | None:
    """Graphs where the configuration asks for them and the model is on a GPU; None, with a line in the log, where they
    cannot be recorded, as for want of memory."""
    if not config.cuda_graphs or model.device.type != "cuda":
        return None
    try:
        with torch.inference_mode():
            return DecodeGraphs(model, cache, CudaRecorder(), rows=config.max_running, context=context)
    except RuntimeError as error:
        logger.warning("decode steps are not recorded as CUDA graphs: %s", error)
        return None


def _steps_to(context: int) -> list[int]:
    """The padded numbers of keys there are."""
    steps = [padded_keys(1)]
    while steps[-1] < context:
        steps.append(padded_keys(steps[-1] + 1))
    return steps


def _filled_up(values: torch.Tensor, rows: int) -> torch.Tensor:
    """[N, ...] -> [rows, ...]: the first again and again."""
    return torch.cat([values, values[:1].expand(rows - len(values), *values.shape[1:])])
