"""A constraint decides what may be drawn, row by row, and nothing else changes."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
import torch

from worker.engine.observer import SilentObserver, StepReport
from worker.engine.protocol import SamplingParams
from worker.engine.sampler import Sampler, SampleRow

VOCABULARY, END = 600, 7


class Allowing:
    """Allows what `tokens` says for a position; remembers what was drawn."""

    end_token_id = END

    def __init__(self, tokens: Callable[[int], Collection[int] | None], vocabulary: int = VOCABULARY) -> None:
        self._tokens = tokens
        self._vocabulary = vocabulary
        self.drawn: list[int] = []
        self.failed = 0

    def allowed(self, position: int) -> np.ndarray | None:
        assert position == len(self.drawn)
        tokens = self._tokens(position)
        if tokens is None:
            return None
        mask = np.zeros(self._vocabulary, bool)
        mask[list(tokens)] = True
        return np.packbits(mask, bitorder="little")

    def take(self, token_id: int) -> None:
        self.drawn.append(token_id)

    def fail(self) -> None:
        self.failed += 1


def row(constraint: Allowing | None, **changes: object) -> SampleRow:
    params = dataclasses.replace(SamplingParams(max_tokens=9, seed=1, stop_token_ids=frozenset([END])), **changes)  # type: ignore[arg-type]
    return SampleRow(params, np.asarray([], np.int64), {}, 0, constraint)


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


WAYS: list[dict[str, object]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 2.0, "top_p": 0.9},
    {"top_k": 2},
    {"top_k": 300, "top_p": 0.99},
    {"min_p": 0.5},
    {"repetition_penalty": 1.5, "logit_bias": {5: 100.0, 3: -100.0}},
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("allowed", [[3], [0, 599], [3, 64, 65, 300], range(100, 400)])
def test_only_allowed_tokens_are_drawn_however_they_are_drawn(way: dict[str, object], allowed: Collection[int]) -> None:
    rows = [row(Allowing(lambda _: allowed), **{**way, "seed": seed}) for seed in range(40)]
    draws = Sampler().sample(logits(40), rows)
    assert all(draw is not None and draw.token_id in allowed for draw in draws)
    assert [one.constraint.drawn for one in rows if one.constraint] == [[draw.token_id] for draw in draws if draw]  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", WAYS)
def test_a_constraint_that_allows_everything_changes_nothing_and_no_row_changes_another(way: dict[str, object]) -> None:
    scores = logits(6)
    plain = Sampler(banned=[9]).sample(scores, [row(None, **way, logprobs=4) for _ in range(6)])
    mixed = [row(Allowing(lambda _: range(VOCABULARY)) if place % 2 else None, **way, logprobs=4) for place in range(6)]
    assert Sampler(banned=[9]).sample(scores, mixed) == plain
    narrow = [row(Allowing(lambda _: [1, 2]) if place % 2 else None, **way, logprobs=4) for place in range(6)]
    assert Sampler(banned=[9]).sample(scores, narrow)[::2] == plain[::2]


@pytest.mark.parametrize("way", [{"temperature": 0.0}, {}, {"top_p": 0.5}])
def test_a_row_that_is_left_nothing_ends_and_is_told(way: dict[str, object]) -> None:
    gone = Allowing(lambda _: None)  # says so itself
    empty, forbidden = Allowing(lambda _: []), Allowing(lambda _: [9])
    ending = Allowing(lambda _: [END])
    rows = [
        row(gone, **way),
        row(empty, **way),
        row(forbidden, **way),
        row(ending, **way, min_tokens=5),
        row(None, **way),
    ]
    draws = Sampler(banned=[9]).sample(logits(5), rows)
    assert [draw.token_id for draw in draws[:4] if draw] == [END] * 4
    assert [one.failed for one in (gone, empty, forbidden, ending)] == [0, 1, 1, 0]
    assert draws[4] == Sampler(banned=[9]).sample(logits(5)[4:], [row(None, **way)])[0]


def test_min_tokens_holds_the_end_back_where_something_else_is_allowed() -> None:
    for seed in range(20):
        [draw] = Sampler().sample(logits(1, seed), [row(Allowing(lambda _: [END, 3]), min_tokens=2)])
        assert draw is not None and draw.token_id == 3


def test_logprobs_are_of_the_allowed_tokens_and_leave_the_others_out() -> None:
    [draw] = Sampler().sample(logits(1), [row(Allowing(lambda _: [3, 5]), logprobs=20)])
    assert draw is not None and draw.logprobs is not None
    assert {token for token, _ in draw.logprobs.top} == {3, 5}
    assert sum(math.exp(logprob) for _, logprob in draw.logprobs.top) == pytest.approx(1)
    [ended] = Sampler().sample(logits(1), [row(Allowing(lambda _: None), logprobs=20)])
    assert ended is not None and ended.logprobs is not None and ended.logprobs.logprob == 0


class Preemptions(SilentObserver):
    seen = 0

    def step_finished(self, report: StepReport) -> None:
        self.seen += report.preemptions


async def test_preempted_answers_go_on_in_their_form(tiny: Any) -> None:
    vocabulary = tiny.model.config.text.vocab_size

    def letters(position: int) -> list[int]:
        return [60 + position % 5, 70 + position % 3]

    requests = []
    for seed in range(6):
        request = tiny.request([5, 6, 7], id=str(seed), seed=seed, temperature=1.0, max_tokens=40)
        requests.append(dataclasses.replace(request, constraint=Allowing(letters, vocabulary)))
    scarce = {"block_size": 4, "kv_cache_bytes": 16 * tiny.block_bytes}
    observer = Preemptions()
    async with tiny.engine(observer, **scarce) as engine:
        answers = await asyncio.gather(*(tiny.answer(engine, request) for request in requests))
    assert observer.seen
    for request, answer in zip(requests, answers, strict=True):
        assert answer == request.constraint.drawn
        assert all(token in letters(position) for position, token in enumerate(answer)) and len(answer) == 40
    alone = [dataclasses.replace(request, constraint=Allowing(letters, vocabulary)) for request in requests]
    async with tiny.engine() as engine:
        assert [await tiny.answer(engine, request) for request in alone] == answers
