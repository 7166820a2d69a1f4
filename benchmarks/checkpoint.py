"""Checkpoints of a real model's shape with random weights: what speed is measured on where no real weights are at hand.

They cost what real ones cost, and say nothing. Weights are drawn as such models are initialised (normal, 0.02), so
activations stay in range. Rows of the output table that are no plain text (special tokens, parts of characters, ids
that the tokenizer lacks) are zero: greedy answers never end early, and every token is text that a stream shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from model.checkpoint.chat_template import own_template
from model.checkpoint.expected import known_tensors
from model.checkpoint.names import LM_HEAD
from model.checkpoint.plan import CheckpointPlan, Progress, write_checkpoint
from model.checkpoint.processor_files import NORMALISATION
from model.checkpoint.tensors import StoredTensor
from model.checkpoint.tokenizer_files import IMAGE, TokenizerPlan, plan_tokenizer
from model.config import LlavaConfig, RopeConfig, TextConfig, VisionConfig, to_hf
from model.errors import CheckpointError
from model.generations import CLIP_L_336, GENERATIONS
from model.prompts.templates import TEMPLATES

QWEN2_05B = TextConfig(
    "qwen2", 151936, 896, 4864, 24, 14, 2, 64, 32768, 1e-6, "silu", True, True, False, False, RopeConfig(theta=1e6)
)
_STD = 0.02
_EMBEDDING = "language_model.model.embed_tokens.weight"
_ROUND = 64  # the vocabulary is a multiple of it


@dataclass(frozen=True)
class Shape:
    """The parts whose sizes make the cost."""

    vision: VisionConfig
    text: TextConfig


SHAPES: Mapping[str, Shape] = {
    "llava-0.7b": Shape(CLIP_L_336, QWEN2_05B),
    "llava-tiny": Shape(  # to try things out
        replace(CLIP_L_336, image_size=56, hidden_size=64, intermediate_size=128, layers=3, heads=4),
        replace(QWEN2_05B, vocab_size=512, hidden_size=128, intermediate_size=256, layers=2, heads=4, head_dim=32),
    ),
}


def make_checkpoint(
    target: Path,
    shape: str,
    tokenizer: Path,
    *,
    generation: str = "llava-1.5",
    context_length: int = 4096,
    seed: int = 0,
    progress: Progress | None = None,
) -> LlavaConfig:
    """Writes `target`, which must not exist, in bfloat16; `tokenizer` is a folder with a tokenizer.

    The chat template is Qwen's where the tokenizer has its tokens, else the folder's own.
    Ours, transformers and vLLM load it. Raises CheckpointError.
    """
    if shape not in SHAPES:
        raise CheckpointError(f"shape {shape}: choose one of {', '.join(SHAPES)}")
    if generation not in GENERATIONS:
        raise CheckpointError(f"generation {generation}: choose one of {', '.join(GENERATIONS)}")
    words = plan_tokenizer(tokenizer, [IMAGE])
    parts, like = SHAPES[shape], GENERATIONS[generation]
    size = max(parts.text.vocab_size, -(-words.size // _ROUND) * _ROUND)
    image_id = words.id_of(IMAGE)
    assert image_id is not None, "the plan has added it"
    vision = parts.vision if like.vision.kind == "clip" else like.vision
    text = replace(parts.text, vocab_size=size, context_length=context_length)
    config = replace(like, vision=vision, text=text, image_token_id=image_id).config
    qwen = words.id_of("<|im_start|>") is not None
    plan = _plan(config, words, TEMPLATES["qwen_1_5"] if qwen else own_template(tokenizer, words), seed)
    write_checkpoint(plan, target, name=shape, progress=progress)
    return plan.config


def _plan(config: LlavaConfig, words: TokenizerPlan, template: str | None, seed: int) -> CheckpointPlan:
    raw = {**to_hf(config), "torch_dtype": "bfloat16"}
    stop = words.stop_token_id
    if stop is not None:
        raw["text_config"] |= {"eos_token_id": stop, "pad_token_id": stop}
    silent = _silent(words.tokenizer, config.text.vocab_size)
    mean, std = NORMALISATION[config.vision.kind]
    tensors = {name: _random(name, shape, silent, seed) for name, shape in known_tensors(config).items()}
    return CheckpointPlan(
        layout="random weights",
        raw=raw,
        tensors=tensors,
        tokenizer=words,
        image_token=IMAGE,
        template=template,
        stop_token_ids=[] if stop is None else [stop],
        base=config.image_mode if config.image_mode in ("crop", "pad") else "stretch",
        mean=mean,
        std=std,
    )


def _silent(tokenizer: Tokenizer, vocabulary: int) -> torch.Tensor:
    """[vocabulary] bool: the ids that are no plain text."""
    special: Set[int] = set(tokenizer.get_added_tokens_decoder())
    silent = torch.ones(vocabulary, dtype=torch.bool)
    for number in range(tokenizer.get_vocab_size(with_added_tokens=True)):
        text = "" if number in special else tokenizer.decode([number])
        silent[number] = not text.strip() or not text.isprintable() or "\N{REPLACEMENT CHARACTER}" in text
    return silent


def _random(name: str, shape: tuple[int, ...], silent: torch.Tensor, seed: int) -> StoredTensor:
    """Norms are the identity, other vectors zero, all else normal numbers; the same for the same name and seed."""
    norm = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "layrnorm.weight"))

    def rows(first: int, last: int) -> torch.Tensor:
        if norm:
            return torch.ones(last - first, dtype=torch.bfloat16)
        if name.endswith(".bias"):
            return torch.zeros(last - first, dtype=torch.bfloat16)
        digest = hashlib.sha256(f"{seed} {name} {first}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn = (_STD * torch.randn(last - first, *shape[1:], generator=generator)).bfloat16()
        if name in (_EMBEDDING, LM_HEAD):
            drawn[silent[first:last]] = 0
        return drawn

    return StoredTensor(Path("memory"), name, shape, torch.bfloat16, rows)
