"""Small checkpoints with random weights, complete in Hugging Face layout, made in about a second.

They serve whatever needs shapes and not sense: tests, smoke runs of a deployment, trying a new machine. transformers
loads them too. The tokenizer is byte-level, so every text round-trips.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from model.config import LlavaConfig
from model.llava import LlavaModel

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' %}<image>
{% else %}{{ part['text'] }}{% endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
_VOCABULARY = 320  # 256 bytes, four special tokens, padded to a multiple of 64


def make_tiny_checkpoint(
    path: str | Path,
    *,
    kind: Literal["llava", "llava_next"] = "llava_next",
    vision: Literal["clip", "siglip"] = "clip",
    text: Literal["llama", "mistral", "qwen2"] = "llama",
    hidden_size: int = 64,
    layers: int = 2,
    context_length: int = 2048,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a checkpoint directory and returns it; an existing one of the same name is overwritten file by file."""
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    raw = _config(kind, vision, text, hidden_size, layers, context_length)
    config = LlavaConfig.from_hf(raw)
    _write(directory / "config.json", raw)
    _write(directory / "preprocessor_config.json", _preprocessor(raw))
    _write(directory / "processor_config.json", _processor(raw))
    _write_tokenizer(directory)
    save_file(_random_weights(config, seed, dtype), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _random_weights(config: LlavaConfig, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        names = LlavaModel(config).state_dict()
        whole = LlavaModel(LlavaConfig.from_hf({**config.raw, "vision_feature_layer": -1})).state_dict()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, like in {**whole, **names}.items():
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "layrnorm.weight")):
            tensors[name] = 1 + 0.1 * torch.randn(like.shape, generator=generator)
        else:
            scale = 0.5 if like.dim() == 1 else 2.0 * like.shape[-1] ** -0.5
            tensors[name] = scale * torch.randn(like.shape, generator=generator)
    norm = "vision_tower.vision_model.post_layernorm"
    tensors[f"{norm}.weight"] = torch.ones(config.vision.hidden_size)
    tensors[f"{norm}.bias"] = torch.zeros(config.vision.hidden_size)
    return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}


def _config(kind: str, vision: str, text: str, hidden: int, layers: int, context: int) -> dict[str, Any]:
    heads = max(2, hidden // 16)
    raw: dict[str, Any] = {
        "model_type": kind,
        "architectures": ["LlavaForConditionalGeneration" if kind == "llava" else "LlavaNextForConditionalGeneration"],
        "image_token_index": 259,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2 if vision == "clip" else -1,
        "vision_feature_select_strategy": "default" if vision == "clip" else "full",
        "tie_word_embeddings": text == "qwen2",
        "text_config": {
            "model_type": text,
            "vocab_size": _VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": hidden * 2,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": text == "qwen2",
            "bos_token_id": 256,
            "eos_token_id": 258,
            "pad_token_id": 256,
        },
        "vision_config": {
            "model_type": f"{vision}_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
            "projection_dim": 32,
        },
    }
    if text == "mistral":
        raw["text_config"]["sliding_window"] = None
    if kind == "llava_next":
        raw["image_grid_pinpoints"] = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    return raw


def _preprocessor(raw: dict[str, Any]) -> dict[str, Any]:
    clip = raw["vision_config"]["model_type"] == "clip_vision_model"
    size = raw["vision_config"]["image_size"]
    next_kind = raw["model_type"] == "llava_next"
    processor: dict[str, Any] = {
        "image_processor_type": "LlavaNextImageProcessor" if next_kind else "LlavaImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size} if next_kind else {"height": size, "width": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "do_pad": True,
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073] if clip else [0.5, 0.5, 0.5],
        "image_std": [0.26862954, 0.26130258, 0.27577711] if clip else [0.5, 0.5, 0.5],
    }
    if next_kind:
        processor["image_grid_pinpoints"] = raw["image_grid_pinpoints"]
    return processor


def _processor(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "processor_class": "LlavaNextProcessor" if raw["model_type"] == "llava_next" else "LlavaProcessor",
        "patch_size": raw["vision_config"]["patch_size"],
        "vision_feature_select_strategy": raw["vision_feature_select_strategy"],
        "num_additional_image_tokens": 1 if raw["vision_feature_select_strategy"] == "default" else 0,
        "image_token": "<image>",
    }


def _write_tokenizer(directory: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": ["<|im_start|>", "<image>"],
            "model_max_length": 2048,
            "clean_up_tokenization_spaces": False,
        },
    )
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    _write(directory / "generation_config.json", {"bos_token_id": 256, "eos_token_id": [258], "pad_token_id": 256})


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
