"""The batched sampler against a plain one that takes one row at a time, in float64."""

import dataclasses

import numpy as np
import pytest
import torch

from worker.engine.noise import uniform
from worker.engine.protocol import SamplingParams
from worker.engine.sampler import Draw, Sampler, SampleRow

VOCABULARY = 600  # more than the sampler ranks at first, so that both of its ways are taken


def row(params: SamplingParams, *, prompt: tuple[int, ...] = (), answer: tuple[int, ...] = ()) -> SampleRow:
    counts = {token: answer.count(token) for token in answer}
    return SampleRow(params, np.unique(np.asarray(prompt, np.int64)), counts, len(answer))


def params(**changes: object) -> SamplingParams:
    return dataclasses.replace(SamplingParams(max_tokens=100, seed=1), **changes)  # type: ignore[arg-type]


def plain_scores(logits: np.ndarray, one: SampleRow) -> np.ndarray:
    scores = logits.astype(np.float64).copy()
    settings = one.params
    for token in set(one.prompt_vocabulary.tolist()) | set(one.answer_counts):
        penalty = settings.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token, count in one.answer_counts.items():
        scores[token] -= settings.frequency_penalty * count + settings.presence_penalty
    for token, bias in settings.logit_bias.items():
        scores[token] += bias
    if one.position < settings.min_tokens:
        for token in settings.stop_token_ids:
            scores[token] = -np.inf
    return scores


def plain_distribution(logits: np.ndarray, one: SampleRow) -> np.ndarray:
    """Probabilities by token id, after everything."""
    settings = one.params
    scores = plain_scores(logits, one) / settings.temperature
    probabilities = np.exp(scores - scores.max())
    order = np.argsort(-probabilities, kind="stable")
    if settings.top_k:
        probabilities[order[settings.top_k :]] = 0
    probabilities /= probabilities.sum()
    if settings.top_p < 1:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        cut = order[before >= settings.top_p]
        probabilities[cut[cut != order[0]]] = 0
    probabilities[probabilities < settings.min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


def plain_draw(logits: np.ndarray, one: SampleRow) -> int:
    if one.params.temperature == 0:
        return int(np.argmax(plain_scores(logits, one)))
    sums = np.cumsum(plain_distribution(logits, one))
    return int(np.searchsorted(sums, uniform(one.params.seed, one.position) * sums[-1], side="right"))


def random_rows(generator: np.random.Generator, count: int) -> list[SampleRow]:
    def maybe(*values: float) -> float:
        return float(generator.choice(values))

    rows = []
    for index in range(count):
        answer = tuple(generator.integers(0, VOCABULARY, generator.integers(0, 20)).tolist())
        bias = {int(token): float(generator.normal(0, 5)) for token in generator.integers(0, VOCABULARY, 4)}
        settings = params(
            seed=index,
            temperature=maybe(0, 0.3, 1, 1.7, 5),
            top_p=maybe(1, 0, 0.3, 0.9, 0.999),
            top_k=int(maybe(0, 1, 5, 300, 10_000)),
            min_p=maybe(0, 0.05, 0.5),
            min_tokens=int(maybe(0, 10)),
            stop_token_ids=frozenset({1, 2, 3}),
            logit_bias=bias if index % 2 else {},
            frequency_penalty=maybe(0, 0.7, -0.5),
            presence_penalty=maybe(0, 1.5),
            repetition_penalty=maybe(1, 1.3),
        )
        rows.append(row(settings, prompt=(*answer[:3], 5, 6, 7), answer=answer))
    return rows


def tokens(draws: list[Draw | None]) -> list[int]:
    return [draw.token_id for draw in draws if draw is not None]


def test_the_batch_draws_what_each_row_alone_would_by_the_plain_method() -> None:
    generator = np.random.default_rng(0)
    rows = random_rows(generator, 400)
    logits = generator.normal(0, 2, (len(rows), VOCABULARY)).astype(np.float32)
    expected = [plain_draw(one_logits, one) for one_logits, one in zip(logits, rows, strict=True)]
    assert tokens(Sampler().sample(torch.from_numpy(logits), rows)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_else_is_in_the_batch_changes_nothing_even_between_equal_logits(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(1)
    rows = [
        dataclasses.replace(one, params=dataclasses.replace(one.params, logprobs=index % 5))
        for index, one in enumerate(random_rows(generator, 60))
    ]
    logits = torch.from_numpy(generator.integers(-6, 6, (len(rows), VOCABULARY)).astype(np.float32)).to(dtype)
    together = Sampler().sample(logits, rows)
    alone = [Sampler().sample(logits[i : i + 1], [one])[0] for i, one in enumerate(rows)]
    assert together == alone
    backwards = Sampler().sample(logits.flip(0), rows[::-1])[::-1]
    assert backwards == together


def test_equal_logits_rank_by_token_id() -> None:
    logits = torch.zeros(1, VOCABULARY)
    drawn = {tokens(Sampler().sample(logits, [row(params(seed=seed, top_k=3))]))[0] for seed in range(60)}
    assert drawn == {0, 1, 2}


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0, 1.5]])
    for settings in (params(), params(top_p=0.8), params(temperature=2.0, top_k=4), params(min_p=0.3)):
        rows = [row(dataclasses.replace(settings, seed=seed)) for seed in range(4000)]
        drawn = np.bincount(tokens(Sampler().sample(logits.expand(len(rows), -1), rows)), minlength=5) / len(rows)
        assert np.abs(drawn - plain_distribution(logits[0].numpy(), rows[0])).max() < 0.03


@pytest.mark.parametrize("settings", [params(top_p=0.9), params(top_k=540), params(top_k=600, top_p=0.9)])
def test_a_flat_distribution_is_cut_where_it_should_be_however_far_that_reaches(settings: SamplingParams) -> None:
    logits = torch.linspace(0.01, 0.0, VOCABULARY)
    rows = [row(dataclasses.replace(settings, seed=seed)) for seed in range(300)]
    drawn = tokens(Sampler().sample(logits.expand(len(rows), -1), rows))
    assert drawn == [plain_draw(logits.numpy(), one) for one in rows]
    assert 500 < max(drawn) < 545


def test_seed_and_position_decide_the_draw() -> None:
    logits = torch.zeros(1, VOCABULARY)
    first = tokens(Sampler().sample(logits, [row(params(seed=5), answer=(1, 2))]))
    assert tokens(Sampler().sample(logits, [row(params(seed=5), answer=(8, 9))])) == first
    others = {tokens(Sampler().sample(logits, [row(params(seed=seed), answer=(1, 2))]))[0] for seed in range(40)}
    assert len(others) > 20
    places = {tokens(Sampler().sample(logits, [row(params(seed=5), answer=(1,) * n)]))[0] for n in range(40)}
    assert len(places) > 20


def test_temperature_zero_takes_the_best_and_of_equals_the_first() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, [40, 7]] = 3.0
    assert tokens(Sampler().sample(logits, [row(params(temperature=0))])) == [7]


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-6])
def test_a_tiny_temperature_comes_to_the_best_token(temperature: float) -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0))
    drawn = tokens(Sampler().sample(logits, [row(params(temperature=temperature))]))
    assert drawn == [int(logits.argmax())]


def test_logprobs_are_read_after_penalties_and_bias_and_before_temperature_and_truncation() -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(0, 2, (1, VOCABULARY)).astype(np.float32)
    settings = params(temperature=3.0, top_k=1, logit_bias={9: 2.0}, presence_penalty=1.0, logprobs=4)
    one = row(settings, answer=(3, 3, 4))
    [draw] = Sampler().sample(torch.from_numpy(logits), [one])
    assert draw is not None and draw.logprobs is not None
    scores = plain_scores(logits[0], one)
    expected = scores - np.log(np.exp(scores).sum())
    assert draw.logprobs.logprob == pytest.approx(expected[draw.token_id], abs=1e-5)
    assert [token for token, _ in draw.logprobs.top] == np.argsort(-expected, kind="stable")[:4].tolist()
    assert [likely for _, likely in draw.logprobs.top] == pytest.approx(np.sort(expected)[::-1][:4], abs=1e-5)


def test_only_rows_that_ask_get_logprobs_and_each_as_many_as_it_asked_for() -> None:
    rows = [row(params(logprobs=count)) for count in (None, 0, 3)]
    draws = Sampler().sample(torch.randn(3, VOCABULARY), rows)
    lengths = [None if draw is None or draw.logprobs is None else len(draw.logprobs.top) for draw in draws]
    assert lengths == [None, 0, 3]


@pytest.mark.parametrize("temperature", [0, 1])
def test_banned_tokens_are_never_drawn_however_likely(temperature: float) -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 17] = 1000.0
    one = row(params(temperature=temperature, logit_bias={17: 100.0}))
    assert tokens(Sampler(banned=[17]).sample(logits, [one])) != [17]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_spoil_their_own_row_alone(bad: float) -> None:
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0))
    rows = [row(params(seed=seed, top_p=0.9, logprobs=2)) for seed in range(3)]
    expected = Sampler().sample(logits, rows)
    logits[1, 5] = bad
    assert Sampler().sample(logits, rows) == [expected[0], None, expected[2]]


def test_the_logits_handed_in_stay_as_they_are() -> None:
    logits = torch.randn(1, VOCABULARY)
    before = logits.clone()
    Sampler(banned=[3]).sample(logits, [row(params(logit_bias={1: 5.0}))])
    assert torch.equal(logits, before)
