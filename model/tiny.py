"""Small checkpoints with random weights, complete in Hugging Face layout, made in about a second.

They serve whatever needs shapes and not sense: tests, smoke runs of a deployment, trying a new machine. transformers
loads them too. The tokenizer is byte-level, so every text round-trips.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from model.config import LlavaConfig, RopeConfig, TextConfig, VisionConfig, to_hf
from model.config.llava import ModelType
from model.generations import CLIP_L_224, GENERATIONS, SIGLIP_SO400M, Generation
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
_IMAGE_TOKEN = 259
_VOCABULARY = 320  # 256 bytes, four special tokens, padded to a multiple of 64
_CLASSES = {"llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}


def make_tiny_checkpoint(
    path: str | Path,
    *,
    kind: ModelType = "llava_next",
    generation: str | Generation | None = None,
    vision: Literal["clip", "siglip"] | None = None,
    text: Literal["llama", "mistral", "qwen2"] | None = None,
    hidden_size: int = 64,
    head_dim: int = 16,
    layers: int = 2,
    context_length: int = 2048,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a checkpoint directory and returns it; an existing one of the same name is overwritten file by file.

    `generation` is one of `model.generations.GENERATIONS`, by name or changed to taste; without it the checkpoint is
    what transformers' class for `kind` is, with CLIP and Llama unless told otherwise.
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    if generation is None:
        chosen = _plain(kind, vision or "clip")
        text = text or "llama"
    else:
        chosen = GENERATIONS[generation] if isinstance(generation, str) else generation
        chosen = replace(chosen, vision=_vision(vision or chosen.vision.kind))
    size = _text(text or chosen.text.kind, hidden_size, head_dim, layers, context_length)
    config = replace(chosen, text=size, image_token_id=_IMAGE_TOKEN).config
    if generation is None:
        config = replace(config, generation=None)
    raw = to_hf(config)
    raw["text_config"] |= {"bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256}
    _write(directory / "config.json", raw)
    _write(directory / "preprocessor_config.json", _preprocessor(config))
    _write(directory / "processor_config.json", _processor(config))
    _write_tokenizer(directory)
    weights = _random_weights(LlavaConfig.from_hf(raw), seed, dtype)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
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


def _plain(kind: ModelType, vision: Literal["clip", "siglip"]) -> Generation:
    """What transformers' class for `kind` is without a word from us."""
    nearest = {"llava": "llava-1.5", "llava_next": "llava-next-2024-01", "llava_onevision": "llava-next-2024-05"}[kind]
    return replace(
        GENERATIONS[nearest],
        vision=_vision(vision),
        feature_layer=-2 if vision == "clip" else -1,
        rounding="round7",
    )


def _vision(kind: Literal["clip", "siglip"]) -> VisionConfig:
    like = {"clip": CLIP_L_224, "siglip": SIGLIP_SO400M}[kind]
    return replace(like, image_size=56, hidden_size=32, intermediate_size=64, layers=3, heads=2)


def _text(
    kind: Literal["llama", "mistral", "qwen2"], hidden: int, head_dim: int, layers: int, context: int
) -> TextConfig:
    heads = max(2, hidden // head_dim)
    return TextConfig(
        kind=kind,
        vocab_size=_VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        layers=layers,
        heads=heads,
        kv_heads=heads // 2,
        head_dim=hidden // heads,
        context_length=context,
        norm_eps=1e-6,
        activation="silu",
        tied_embeddings=kind == "qwen2",
        qkv_bias=kind == "qwen2",
        output_bias=False,
        mlp_bias=False,
        rope=RopeConfig(),
    )


def _preprocessor(config: LlavaConfig) -> dict[str, Any]:
    clip, size = config.vision.kind == "clip", config.vision.image_size
    square = {"height": size, "width": size}
    processor: dict[str, Any] = {
        "image_processor_type": _CLASSES[config.kind] + "ImageProcessor",
        "do_resize": True,
        "size": square if config.kind == "llava_onevision" else {"shortest_edge": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "do_pad": config.image_mode != "crop",
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073] if clip else [0.5, 0.5, 0.5],
        "image_std": [0.26862954, 0.26130258, 0.27577711] if clip else [0.5, 0.5, 0.5],
    }
    if config.kind != "llava_onevision":
        processor |= {"do_center_crop": True, "crop_size": square}
    if config.canvases:
        processor["image_grid_pinpoints"] = [[canvas.height, canvas.width] for canvas in config.canvases]
    return processor


def _processor(config: LlavaConfig) -> dict[str, Any]:
    processor: dict[str, Any] = {
        "processor_class": _CLASSES[config.kind] + "Processor",
        "vision_feature_select_strategy": "default" if config.drop_cls else "full",
        "image_token": "<image>",
    }
    if config.kind == "llava_onevision":
        ratio = to_hf(config)["vision_aspect_ratio"]
        return processor | {"num_image_tokens": config.vision.grid**2, "vision_aspect_ratio": ratio}
    return processor | {
        "patch_size": config.vision.patch_size,
        "num_additional_image_tokens": int(config.drop_cls),
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
            "model_input_names": ["input_ids", "attention_mask"],
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
