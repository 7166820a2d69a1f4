"""The next token along a model's own greedy answers, asked of two models."""

from __future__ import annotations

import pytest
import torch

from model.attention import SegmentAttention
from model.checkpoint import load_checkpoint
from model.llava import LlavaModel
from model.tiny import make_tiny_checkpoint
from training.data.batches import Example
from training.evaluation.greedy import follow_greedy

MOST = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlavaModel, LlavaModel]:
    folder = tmp_path_factory.mktemp("tiny")
    first, second = (
        load_checkpoint(make_tiny_checkpoint(folder / str(seed), seed=seed), dtype=torch.float32).model
        for seed in (0, 1)
    )
    return first, second


def example(branched: bool) -> Example:
    """A shared beginning of ten tokens and two questions of four, each with an answer of two behind it."""
    questions = [[40, 41, 42, 43], [50, 51, 52, 53]] if branched else [[40, 41, 42, 43]]
    ids = list(range(100, 110)) + [token for question in questions for token in (*question, 7, 8)]
    branches = [0] * 10 + [number for number, _ in enumerate(questions, 1) for _ in range(6)]
    supervised = [False] * 10 + [False, False, False, False, True, True] * len(questions)
    return Example("row", torch.tensor(ids), torch.tensor(supervised), None, torch.tensor(branches) * branched)


@torch.inference_mode()
def greedy(model: LlavaModel, prompt: list[int]) -> list[int]:
    """The plain way: all of it anew for every token."""
    ids = list(prompt)
    for _ in range(MOST):
        embedded = model.language_model.embed(torch.tensor(ids))
        hidden = model.language_model(embedded, torch.arange(len(ids)), SegmentAttention([len(ids)]))
        ids.append(int(model.language_model.logits(hidden[-1:]).argmax()))
    return ids[len(prompt) :]


@torch.inference_mode()
def would_say(model: LlavaModel, prompt: list[int], answer: list[int]) -> list[int]:
    ids = torch.tensor(prompt + answer)
    hidden = model.language_model(model.language_model.embed(ids), torch.arange(len(ids)), SegmentAttention([len(ids)]))
    return model.language_model.logits(hidden).argmax(dim=-1)[len(prompt) - 1 : -1].tolist()


@pytest.mark.parametrize("branched", [True, False])
def test_it_counts_what_answering_each_question_by_itself_counts(
    branched: bool, models: tuple[LlavaModel, LlavaModel]
) -> None:
    first, second = models
    beginning = list(range(100, 110))
    expected = 0
    for question in ([40, 41, 42, 43], [50, 51, 52, 53])[: 1 + branched]:
        answer = greedy(first, beginning + question)
        expected += sum(a == b for a, b in zip(answer, would_say(second, beginning + question, answer), strict=True))
    found = follow_greedy(first, second, example(branched), (), MOST)
    assert (found.tokens, found.agreed) == (MOST * (1 + branched), expected)


def test_a_model_agrees_with_itself_until_it_stops(models: tuple[LlavaModel, LlavaModel]) -> None:
    first, _ = models
    answer = greedy(first, [*range(100, 110), 40, 41, 42, 43])
    found = follow_greedy(first, first, example(False), (answer[3],), MOST)
    assert found.tokens == found.agreed == answer.index(answer[3]) + 1
