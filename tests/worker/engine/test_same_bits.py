"""In float32 on a CPU an answer's tokens and log probabilities are the same to the last bit, however it came about."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.cpu.invariant import make_invariant
from model.llava import LlavaModel
from model.tiny import make_tiny_checkpoint
from worker.engine.protocol import EngineRequest

if TYPE_CHECKING:
    from tests.worker.engine.conftest import Recorder, Tiny

# Widths, in the last, of which no vector's length is a divisor; and the window of one.
MODELS: dict[str, tuple[dict[str, Any], int | None]] = {
    "llava-1.5": ({"generation": "llava-1.5"}, None),
    "llava-next-2024-05": ({"generation": "llava-next-2024-05"}, None),
    "window": ({"generation": "llava-next-2024-01", "text": "mistral"}, 11),
    "odd": ({"text": "qwen2", "hidden_size": 60, "head_dim": 20}, None),
}


@pytest.fixture(scope="module", params=MODELS)
def steady(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    kind, window = MODELS[request.param]
    checkpoint = load_checkpoint(make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), **kind), dtype=torch.float32)
    config = replace(checkpoint.config, text=replace(checkpoint.config.text, sliding_window=window))
    model = LlavaModel(config)
    model.load_state_dict(checkpoint.model.state_dict())
    return type(tiny)(make_invariant(model.eval()), checkpoint.preprocessor)


@dataclass(frozen=True)
class Token:
    """What came of one token: its log probability, and those of the likeliest."""

    number: int | None
    logprob: float
    likeliest: tuple[tuple[int, float], ...]
    end: str | None


async def read(engine: Any, request: EngineRequest) -> list[Token]:
    outputs = [output async for output in engine.generate(request)]
    return [Token(o.token_id, o.logprobs.logprob, o.logprobs.top, o.finish_reason) for o in outputs]


def some_requests(steady: Tiny, chance: random.Random) -> list[EngineRequest]:
    """Long and short, greedy and not, with pictures and without; some begin alike."""
    beginning = [chance.randrange(250) for _ in range(37)]
    requests = []
    for index in range(9):
        text = [chance.randrange(250) for _ in range(chance.choice((1, 5, 40, 90)))]
        seeded = {"temperature": 1.0, "top_p": 0.9, "seed": index} if index % 2 else {}
        penalties = {"repetition_penalty": 1.3, "presence_penalty": 0.5} if index % 4 == 0 else {}
        sizes = [(90, 60), (40, 130), (56, 56)][: index % 4 if index % 3 else 0]
        pictures = [steady.picture(*size, seed=index % 2) for size in sizes]
        settings = {"max_tokens": chance.choice((1, 9, 30)), "logprobs": 12, **seeded, **penalties}
        requests.append(steady.request([*beginning * (index % 2), *text], pictures, id=str(index), **settings))
    return requests


async def alone(steady: Tiny, requests: list[EngineRequest]) -> list[list[Token]]:
    """One after the other, nothing cached, every prompt in one piece."""
    async with steady.engine(prefix_cache=False, feature_cache_bytes=0, max_step_tokens=2048) as engine:
        return [await read(engine, request) for request in requests]


def begun_elsewhere(request: EngineRequest, answer: list[Token], place: int) -> EngineRequest:
    """The request, carried on behind the first `place` tokens."""
    return replace(request, answer=tuple(token.number for token in answer[:place] if token.number is not None))


async def all_at_once(
    engine: Any, requests: list[EngineRequest], chance: random.Random
) -> AsyncIterator[tuple[int, list[Token]]]:
    async def late(index: int) -> list[Token]:
        await asyncio.sleep(chance.random() * 0.05)
        return await read(engine, requests[index])

    order = list(range(len(requests)))
    chance.shuffle(order)
    for index, tokens in zip(order, await asyncio.gather(*map(late, order)), strict=True):
        yield index, tokens


@pytest.mark.parametrize("seed", range(6))
async def test_answers_alone_and_among_others_are_the_same_bits(steady: Tiny, recorder: Recorder, seed: int) -> None:
    chance = random.Random(seed)
    requests = some_requests(steady, chance)
    expected = await alone(steady, requests)
    settings = {
        "max_step_tokens": chance.choice((7, 37, 512)),
        "max_step_tiles": chance.choice((1, 4)),
        "max_running": chance.choice((2, 7)),
        "block_size": chance.choice((1, 4, 16)),
        "prefix_cache": bool(seed % 3),
        "threads": 1 + seed % 2,
    }
    async with steady.engine(recorder, **settings) as engine:
        for time in ("new", "known"):
            places = [chance.randrange(len(answer)) * (index % 2) for index, answer in enumerate(expected)]
            asked = [begun_elsewhere(*parts) for parts in zip(requests, expected, places, strict=True)]
            async for index, found in all_at_once(engine, asked, chance):
                assert found == expected[index][places[index] :], (time, index, settings)
    assert max(step.running for step in recorder.steps) > 1
    assert bool(sum(step.prefix_hits for step in recorder.steps)) == settings["prefix_cache"]


async def test_answers_that_lost_their_blocks_on_the_way_are_the_same_bits(steady: Tiny, recorder: Recorder) -> None:
    chance = random.Random(7)
    requests = [
        steady.request([chance.randrange(250) for _ in range(20)], max_tokens=30, logprobs=12, id=str(index))
        for index in range(6)
    ]
    expected = await alone(steady, requests)
    few = {"block_size": 4, "kv_cache_bytes": 34 * steady.block_bytes, "max_step_tokens": 33}
    async with steady.engine(recorder, **few, max_running=6) as engine:
        async for index, found in all_at_once(engine, requests, chance):
            assert found == expected[index], index
    assert recorder.preemptions > 0
