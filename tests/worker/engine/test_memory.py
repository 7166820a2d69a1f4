from dataclasses import replace

import pytest
import torch

from model.config import TextConfig
from worker.engine.config import EngineConfig
from worker.engine.memory import block_bytes, block_count, free_bytes

CPU = torch.device("cpu")
TEXT = TextConfig(
    kind="llama",
    vocab_size=100,
    hidden_size=576,
    intermediate_size=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    context_length=2048,
    norm_eps=1e-5,
    activation="silu",
    tied_embeddings=True,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    rope=None,  # type: ignore[arg-type]
)


def test_a_block_is_keys_and_values_of_its_tokens_in_all_layers() -> None:
    assert block_bytes(TEXT, 16, torch.bfloat16) == 2 * 30 * 16 * 3 * 64 * 2


def test_the_budget_buys_whole_blocks() -> None:
    price = block_bytes(TEXT, 16, torch.bfloat16)
    for budget, blocks in ((price, 1), (2 * price - 1, 1), (10 * price, 10)):
        assert block_count(EngineConfig(kv_cache_bytes=budget), TEXT, torch.bfloat16, CPU) == blocks


def test_no_more_blocks_than_the_running_sequences_can_fill() -> None:
    config = EngineConfig(max_running=3, kv_cache_bytes=2**40)
    assert block_count(config, TEXT, torch.bfloat16, CPU) == 3 * 128
    assert block_count(replace(config, context_length=100), TEXT, torch.bfloat16, CPU) == 3 * 7


def test_by_default_a_part_of_the_free_memory_is_taken_and_two_gib_at_most() -> None:
    large = replace(TEXT, context_length=10**7)
    taken = block_count(EngineConfig(), large, torch.bfloat16, CPU) * block_bytes(large, 16, torch.bfloat16)
    assert 0 < taken <= min(2 * 2**30, free_bytes(CPU))


def test_a_budget_below_one_block_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no block"):
        block_count(EngineConfig(kv_cache_bytes=1), TEXT, torch.bfloat16, CPU)
