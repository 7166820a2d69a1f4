"""A checkpoint with random weights is sound, loads elsewhere, and answers in plain text that never ends early."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from benchmarks.checkpoint import QWEN2_05B, SHAPES, make_checkpoint
from model.checkpoint import load_checkpoint
from model.checkpoint.tensors import stored_tensors
from model.checkpoint.verify import verify_checkpoint
from model.errors import CheckpointError
from model.tiny import make_tiny_checkpoint


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("words") / "tiny")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Path:
    folder = tmp_path_factory.mktemp("made") / "checkpoint"
    make_checkpoint(folder, "llava-tiny", words)
    return folder


def test_nothing_is_wrong_with_it(made: Path) -> None:
    assert verify_checkpoint(made) == []


def test_the_named_shape_is_the_one_that_floors_were_measured_on() -> None:
    shape = SHAPES["llava-0.7b"]
    assert (shape.vision.image_size, shape.vision.patch_size, shape.vision.layers) == (336, 14, 24)
    assert shape.text is QWEN2_05B
    # Qwen2-0.5B's config.json
    assert (QWEN2_05B.layers, QWEN2_05B.hidden_size, QWEN2_05B.intermediate_size) == (24, 896, 4864)
    assert (QWEN2_05B.heads, QWEN2_05B.kv_heads, QWEN2_05B.vocab_size) == (14, 2, 151936)


def test_weights_are_the_same_for_the_same_seed_only(made: Path, words: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "same", "llava-tiny", words)
    make_checkpoint(tmp_path / "other", "llava-tiny", words, seed=1)
    first, same, other = (
        (at / "model.safetensors").read_bytes() for at in (made, tmp_path / "same", tmp_path / "other")
    )
    assert first == same
    assert first != other


def test_what_is_no_plain_text_can_never_be_the_likeliest_token(made: Path) -> None:
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    table = stored_tensors(made)["language_model.model.embed_tokens.weight"]
    rows = table.rows(0, table.shape[0])
    loud = rows.float().abs().sum(1) > 0
    letters = [number for number in range(rows.shape[0]) if loud[number]]
    texts = [tokenizer.decode([number]) for number in letters]
    assert len(letters) > 90
    assert all(text.strip() and text.isprintable() for text in texts)
    assert not any(loud[number] for number in tokenizer.get_added_tokens_decoder())
    hidden = torch.randn(64, rows.shape[1], generator=torch.Generator().manual_seed(0))
    assert bool(loud[(hidden @ rows.float().T).argmax(1)].all())


@pytest.mark.parametrize("generation", ["llava-1.5", "llava-next-2024-01"])
def test_other_generations_load_too(generation: str, words: Path, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "made", "llava-tiny", words, generation=generation, context_length=2048)
    assert made.generation == generation
    assert load_checkpoint(tmp_path / "made").config.text.context_length == 2048


def test_what_does_not_exist_is_refused_with_the_choices(words: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"choose one of llava-0\.7b, llava-tiny"):
        make_checkpoint(tmp_path / "a", "llava-70b", words)
    with pytest.raises(CheckpointError, match=r"choose one of llava-1\.0"):
        make_checkpoint(tmp_path / "a", "llava-tiny", words, generation="llava-9")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        make_checkpoint(tmp_path / "a", "llava-tiny", tmp_path)
