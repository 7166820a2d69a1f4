"""Decode steps over static tensors, replayed by a recorder that needs no GPU, against the plain path."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.cpu.invariant import make_invariant
from model.llava import LlavaModel
from model.tiny import make_tiny_checkpoint
from worker.engine import cpu_attention
from worker.engine.blocks import BlockAllocator
from worker.engine.config import EngineConfig
from worker.engine.decode_graphs import DecodeGraphs
from worker.engine.features import FeatureCache
from worker.engine.paged_attention import KvCache
from worker.engine.runner import Runner
from worker.engine.sampler import Draw
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence

if TYPE_CHECKING:
    from tests.worker.engine.conftest import Tiny

CONTEXT, BLOCKS = 700, 260
CONFIG = EngineConfig(max_running=6, max_step_tokens=300, block_size=16)


class Again:
    """What a graph does: the same operations over the same tensors, into the same result."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        result = run().clone()
        self.recorded += 1

        def replay() -> torch.Tensor:
            self.replayed += 1
            return result.copy_(run())

        return replay


@pytest.fixture(scope="module", params=[None, 300], ids=["whole", "window"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LlavaModel:
    """Whose products give a row the same bits whatever rows stand beside it."""
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), context_length=CONTEXT)
    checkpoint = load_checkpoint(folder, dtype=torch.float32)
    config = replace(checkpoint.config, text=replace(checkpoint.config.text, sliding_window=request.param))
    model = LlavaModel(config)
    model.load_state_dict(checkpoint.model.state_dict())
    return make_invariant(model.eval())


@torch.inference_mode()
def answers(model: LlavaModel, tiny: Tiny, recorder: Again | None) -> dict[int, list[Draw]]:
    """Of requests that come one after the other, of many lengths, through the engine's scheduler and runner."""
    allocator = BlockAllocator(BLOCKS, CONFIG.block_size)
    cache = KvCache(model.config.text, BLOCKS, CONFIG.block_size, dtype=model.dtype, device=model.device)
    for pool in cache.pools:
        pool.fill_(torch.nan)  # nobody may read what he did not write
    graphs = None
    if recorder is not None:
        graphs = DecodeGraphs(model, cache, recorder, rows=CONFIG.max_running, context=CONTEXT)
    runner, scheduler = Runner(model, cache, graphs), Scheduler(CONFIG, allocator, FeatureCache(0))
    chance, drawn = random.Random(0), {}
    arrivals = [(3 * number, chance.choice((1, 4, 90, 250, 255, 256, 500))) for number in range(12)]
    sequences = []
    step = 0
    while arrivals or scheduler.has_work:
        while arrivals and arrivals[0][0] <= step:
            _, length = arrivals.pop(0)
            number = len(sequences)
            text = [chance.randrange(250) for _ in range(length)]
            sampling = {"max_tokens": 9 + number, "logprobs": 3, "temperature": number % 2 * 0.8, "seed": number}
            sequences.append(
                Sequence.of(
                    tiny.request([token for token in text if token != model.config.image_token_id], **sampling),
                    number=number,
                    context_length=CONTEXT,
                    image_token_id=model.config.image_token_id,
                    allocator=allocator,
                    weights="",
                    now=0.0,
                )
            )
            scheduler.add(sequences[-1])
        if scheduler.has_work:
            result = runner.run(scheduler.schedule())
            assert not result.failed
            for chunk in result.computed:
                scheduler.complete(chunk)
            for sequence, draw in result.drawn:
                drawn.setdefault(sequence.number, []).append(draw)
                if sequence.append(draw.token_id) is not None:
                    scheduler.finish(sequence)
        step += 1
    return drawn


def test_replayed_decodes_have_the_bits_of_plain_ones(
    model: LlavaModel, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention.team, "available", lambda: False)  # attention as on a GPU
    plain = answers(model, tiny, None)
    recorder = Again()
    assert answers(model, tiny, recorder) == plain
    assert recorder.replayed > 20


def test_each_number_of_rows_and_keys_is_recorded_once_at_start(model: LlavaModel, tiny: Tiny) -> None:
    recorder = Again()
    answers(model, tiny, recorder)
    keys = 2 if model.config.text.sliding_window else 3  # 256, 512, 1024
    assert recorder.recorded == 4 * keys  # of 1, 2, 4 and 6 rows


def test_more_rows_than_were_recorded_are_refused(model: LlavaModel, tiny: Tiny) -> None:
    recorder = Again()
    cache = KvCache(model.config.text, BLOCKS, CONFIG.block_size, dtype=model.dtype, device=model.device)
    allocator = BlockAllocator(BLOCKS, CONFIG.block_size)
    scheduler = Scheduler(CONFIG, allocator, FeatureCache(0))
    with torch.inference_mode():
        graphs = DecodeGraphs(model, cache, recorder, rows=2, context=CONTEXT)
        for number in range(3):
            request = tiny.request([5, 6])
            image = model.config.image_token_id
            scheduler.add(
                Sequence.of(
                    request,
                    number=number,
                    context_length=CONTEXT,
                    image_token_id=image,
                    allocator=allocator,
                    weights="",
                    now=0.0,
                )
            )
        chunks = [replace(chunk, start=0, end=1) for chunk in scheduler.schedule().chunks]
        with pytest.raises(ValueError, match="3 rows"):
            graphs.run(chunks)
