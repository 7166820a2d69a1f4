"""The small files around the demo's weights, as transformers 4 and 5 and vLLM read them.

Everything here is data: what each file says, given the two models that were read. Nothing is written here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from deploy.demo.language_model import IMAGE_TOKEN, LanguageModel
from deploy.demo.packages import Package
from deploy.demo.trained_parts import TrainedParts
from deploy.demo.vision_tower import FEATURE_LAYER, IMAGE_MEAN, IMAGE_STD, TILE, VisionTower

_HERE = Path(__file__).parent
_GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))  # rows and columns of tiles
_CANVASES = [[TILE * rows, TILE * columns] for rows, columns in _GRIDS]  # Hugging Face's order: height, width


def small_files(language: LanguageModel, vision: VisionTower) -> dict[str, str]:
    """File name -> text, all but the weights, the manifest and the model card."""
    files: dict[str, Any] = {
        "config.json": {
            "model_type": "llava_next",
            "architectures": ["LlavaNextForConditionalGeneration"],
            "torch_dtype": "bfloat16",
            "text_config": {**language.text_config, "torch_dtype": "bfloat16"},
            "vision_config": {**vision.vision_config, "torch_dtype": "bfloat16"},
            "image_token_index": language.image_token_id,
            "image_grid_pinpoints": _CANVASES,
            "vision_feature_layer": FEATURE_LAYER,
            "vision_feature_select_strategy": "full",
            "projector_hidden_act": "gelu",
            "multimodal_projector_bias": True,
            "use_image_newline_parameter": True,
            "tie_word_embeddings": True,
        },
        "generation_config.json": {
            "bos_token_id": language.text_config["bos_token_id"],
            "eos_token_id": list(language.stop_token_ids),
            "pad_token_id": language.text_config["pad_token_id"],
        },
        "preprocessor_config.json": {
            "image_processor_type": "LlavaNextImageProcessor",
            "processor_class": "LlavaNextProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": TILE},
            "resample": 3,  # bicubic
            "do_center_crop": True,
            "crop_size": {"height": TILE, "width": TILE},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": IMAGE_MEAN,
            "image_std": IMAGE_STD,
            "do_pad": True,
            "image_grid_pinpoints": _CANVASES,
        },
        "processor_config.json": {
            "processor_class": "LlavaNextProcessor",
            "image_token": IMAGE_TOKEN,
            "patch_size": vision.vision_config["patch_size"],
            "num_additional_image_tokens": 0,
            "vision_feature_select_strategy": "full",
        },
        "tokenizer_config.json": {**language.tokenizer_config, "processor_class": "LlavaNextProcessor"},
    }
    template = (_HERE / "chat_template.jinja").read_text(encoding="utf-8")
    texts = {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}
    return {**texts, "tokenizer.json": language.tokenizer.to_str(pretty=True) + "\n", "chat_template.jinja": template}


def model_card(packages: Sequence[Package], parts: TrainedParts | None) -> str:
    """README.md: what the model is for, what it is not for, and where it comes from."""
    text = (_HERE / "model_card.md").read_text(encoding="utf-8")
    rows = [f"| {package.holds} | PyPI package {package} | {package.licence} |" for package in packages]
    trained = "random numbers: nothing is trained yet" if parts is None else f"Tephra's recipe {parts.recipe}"
    return Template(text).substitute(packages="\n".join(rows), trained=trained)
