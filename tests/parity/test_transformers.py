"""Every pair of vision tower and language model against transformers on the same random weights, in fp32.

Differences and bounds: `test_generations.py`, which has every generation's way with images.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.tiny import make_tiny_checkpoint

LOGITS = 5e-4  # absolute; logits span about +-9
PICTURES = {"wide": [(300, 200)], "two": [(64, 64), (200, 50)], "none": []}


@pytest.fixture(
    scope="module",
    params=[
        (kind, vision, text)
        for kind in ("llava", "llava_next")
        for vision in ("clip", "siglip")
        for text in ("llama", "mistral", "qwen2")
    ],
    ids="-".join,
)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_pair: Callable[..., Any]
) -> Any:
    kind, vision, text = request.param
    path = make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), kind=kind, vision=vision, text=text, seed=3)
    return make_pair(path, torch.float32)


@pytest.mark.parametrize("sizes", PICTURES.values(), ids=PICTURES)
@torch.inference_mode()
def test_prompt_and_logits_are_those_of_transformers(pair: Any, sizes: list[tuple[int, int]]) -> None:
    (ids, images), theirs = pair.row(sizes), pair.their_inputs(sizes)
    assert theirs["input_ids"][0].tolist() == ids.tolist()
    assert (pair.logits([(ids, images)]) - pair.their_logits(theirs)).abs().max() <= LOGITS


@torch.inference_mode()
def test_greedy_tokens_are_those_of_transformers(pair: Any) -> None:
    (ids, images), theirs = pair.row(PICTURES["two"]), pair.their_inputs(PICTURES["two"])
    expected = pair.theirs.generate(**theirs, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, len(ids) :]
    drawn: list[int] = []
    for _ in range(len(expected)):
        row = torch.cat([ids, torch.tensor(drawn, dtype=torch.long)])
        drawn.append(int(pair.logits([(row, images)])[-1].argmax()))
    assert drawn == expected.tolist()


@torch.inference_mode()
def test_rows_of_unequal_length_in_one_batch_answer_as_they_do_alone(pair: Any) -> None:
    rows = [pair.row(sizes) for sizes in PICTURES.values()]
    together = pair.logits(rows).split([len(ids) for ids, _ in rows])
    for row, logits in zip(rows, together, strict=True):
        assert (pair.logits([row]) - logits).abs().max() <= LOGITS
