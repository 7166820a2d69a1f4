"""SmolLM2-135M-Instruct out of its GGUF file, as the tensors and the tokenizer of a Hugging Face Llama.

llama.cpp stores what Hugging Face stores under other names, quantised (Q4_1, the embedding Q8_0), and with the rows of
the query and key projections reordered for its own rotary embedding (`LlamaModel.permute` in llama.cpp's converter);
this module undoes all three. It adds one token to the vocabulary, `<image>`, behind all that the base knows. It knows
nothing of pictures beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

IMAGE_TOKEN = "<image>"
VOCABULARY_MULTIPLE = 64  # transformers and vLLM pad to this; so do we, once, in the file
_NEVER_WRITTEN = "Ġtraject"  # a step on the way to "trajectory": no text ends a token there
_CONTROL = 3  # GGUF's token type for tokens that text never produces

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class LanguageModel:
    """What the assembly needs of the base model."""

    tensors: dict[str, torch.Tensor]  # float32, named language_model.model.*
    text_config: dict[str, Any]
    tokenizer: Tokenizer
    tokenizer_config: dict[str, Any]
    image_token_id: int
    stop_token_ids: tuple[int, ...]


def read_language_model(path: Path) -> LanguageModel:
    """Reads the GGUF file at `path`. The embedding is tied, so there is no lm_head tensor."""
    reader = GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    heads = metadata["llama.attention.head_count"]
    kv_heads = metadata["llama.attention.head_count_kv"]
    words = metadata["tokenizer.ggml.tokens"]
    vocabulary = _padded(len(words) + 1)

    tensors: dict[str, torch.Tensor] = {}
    for stored in reader.tensors:
        values = torch.from_numpy(np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32))
        if stored.name.endswith("attn_q.weight"):
            values = _rotary_halves(values, heads)
        elif stored.name.endswith("attn_k.weight"):
            values = _rotary_halves(values, kv_heads)
        tensors["language_model.model." + _hugging_face_name(stored.name)] = values
    embedding = tensors["language_model.model.embed_tokens.weight"]
    tensors["language_model.model.embed_tokens.weight"] = _extended(embedding, vocabulary, words.index(_NEVER_WRITTEN))

    return LanguageModel(
        tensors=tensors,
        text_config={
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": vocabulary,
            "hidden_size": metadata["llama.embedding_length"],
            "intermediate_size": metadata["llama.feed_forward_length"],
            "num_hidden_layers": metadata["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": metadata["llama.rope.dimension_count"],
            "hidden_act": "silu",
            "max_position_embeddings": metadata["llama.context_length"],
            "rms_norm_eps": round(metadata["llama.attention.layer_norm_rms_epsilon"], 9),  # stored as float32
            "rope_theta": metadata["llama.rope.freq_base"],
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
            "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
            "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        },
        tokenizer=_tokenizer(words, metadata["tokenizer.ggml.merges"], metadata["tokenizer.ggml.token_type"]),
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],  # transformers 4 would add token_type_ids
            "bos_token": words[metadata["tokenizer.ggml.bos_token_id"]],
            "eos_token": words[metadata["tokenizer.ggml.eos_token_id"]],
            "unk_token": words[metadata["tokenizer.ggml.unknown_token_id"]],
            "pad_token": words[metadata["tokenizer.ggml.padding_token_id"]],
            "padding_side": "left",
            "model_max_length": metadata["llama.context_length"],
            "clean_up_tokenization_spaces": False,
        },
        image_token_id=len(words),
        stop_token_ids=(metadata["tokenizer.ggml.eos_token_id"], words.index("<|endoftext|>")),
    )


def _hugging_face_name(name: str) -> str:
    if name == "token_embd.weight":
        return "embed_tokens.weight"
    if name == "output_norm.weight":
        return "norm.weight"
    _, layer, part, kind = name.split(".")
    return f"layers.{layer}.{_LAYER_NAMES[part]}.{kind}"


def _rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """From llama.cpp's row order (pairs side by side) to Hugging Face's (first halves, then second halves)."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns).contiguous()


def _padded(size: int) -> int:
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def _extended(embedding: torch.Tensor, vocabulary: int, never_written: int) -> torch.Tensor:
    """Rows for `<image>` and the padding.

    The embedding is also the output matrix. Rows of zeros would give these tokens a logit of 0, which a sampler draws
    now and then (0.3 % of the mass on average, half of it at worst); copies of a token that no text has get 1e-8.
    """
    return torch.cat([embedding, embedding[never_written].expand(vocabulary - len(embedding), -1)])


def _tokenizer(words: list[str], merges: list[str], kinds: list[int]) -> Tokenizer:
    """Byte-level BPE that splits digits first: what llama.cpp calls the pre-tokenizer `smollm`."""
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: number for number, word in enumerate(words)},
            merges=[(left, right) for left, right in (merge.split(" ") for merge in merges)],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in [*control, IMAGE_TOKEN]])
    return tokenizer
