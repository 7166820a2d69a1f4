"""One small request before the first real one: it compiles the kernels, and shows that the model runs.

It works on a block table of its own over the same KV pools, so that nothing of it is left when requests come.
"""

from __future__ import annotations

import time

import torch

from model.llava import LlavaModel
from worker.engine.blocks import BlockAllocator
from worker.engine.config import EngineConfig
from worker.engine.features import FeatureCache
from worker.engine.protocol import EngineRequest, SamplingParams
from worker.engine.runner import Runner
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence

_PROMPT, _ANSWER = 3, 2  # tokens: a prefill, and a decode behind it


@torch.inference_mode()
def warm_up(model: LlavaModel, runner: Runner, config: EngineConfig, blocks: int) -> float:
    """Encodes one blank tile and answers one prompt. Returns the seconds it took; raises what the model raises."""
    begun = time.monotonic()
    side = model.config.vision.image_size
    model.encode_tiles(torch.zeros(1, 3, side, side))
    allocator = BlockAllocator(blocks, config.block_size)
    if allocator.tokens < _PROMPT + _ANSWER:
        return time.monotonic() - begun
    image = model.config.image_token_id
    tokens = tuple(token for token in range(_PROMPT + 1) if token != image)[:_PROMPT]
    request = EngineRequest("warm-up", tokens, (), SamplingParams(max_tokens=_ANSWER, seed=0, temperature=0.0))
    sequence = Sequence.of(
        request,
        number=0,
        context_length=allocator.tokens,
        image_token_id=image,
        allocator=allocator,
        weights="",
        now=begun,
    )
    scheduler = Scheduler(config, allocator, FeatureCache(0))
    scheduler.add(sequence)
    while scheduler.has_work:
        result = runner.run(scheduler.schedule())
        for chunk in result.computed:
            scheduler.complete(chunk)
        for _, draw in result.drawn:
            if sequence.append(draw.token_id) is not None:
                scheduler.finish(sequence)
        for failed, _ in result.failed:
            scheduler.finish(failed)
    return time.monotonic() - begun
