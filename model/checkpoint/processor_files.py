"""The small files around the weights that tell transformers and vLLM how images are prepared.

They follow from the configuration alone, but for the mean and standard deviation of the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.config import LlavaConfig
from model.geometry import BaseView

PROCESSORS = {
    "llava": "LlavaProcessor",
    "llava_next": "LlavaNextProcessor",
    "llava_onevision": "LlavaOnevisionProcessor",
}
_IMAGE_PROCESSORS = {
    "llava": "LlavaImageProcessor",
    "llava_next": "LlavaNextImageProcessor",
    "llava_onevision": "LlavaOnevisionImageProcessor",
}
ARCHITECTURES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}
NORMALISATION: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {  # mean and standard deviation
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_BICUBIC = 3


def preprocessor_config(
    config: LlavaConfig, base: BaseView, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """preprocessor_config.json."""
    side = config.vision.image_size
    square = {"height": side, "width": side}
    files: dict[str, Any] = {
        "image_processor_type": _IMAGE_PROCESSORS[config.kind],
        "processor_class": PROCESSORS[config.kind],
        "do_convert_rgb": True,
        "do_pad": config.kind != "llava" or base == "pad",
        "do_resize": True,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if config.kind == "llava_onevision":
        files["size"] = square
    else:
        crops = config.kind == "llava_next" or base == "crop"  # transformers' AnyRes crops tiles that fit already
        files["size"] = {"shortest_edge": side} if crops else square
        files["do_center_crop"] = crops
        files["crop_size"] = square
    if config.canvases:
        files["image_grid_pinpoints"] = [[canvas.height, canvas.width] for canvas in config.canvases]
    return files


def video_preprocessor_config(images: Mapping[str, Any]) -> dict[str, Any]:
    """video_preprocessor_config.json, for transformers' class that takes videos too: it must be there, none is used.

    `images` is preprocessor_config.json.
    """
    kept = ("do_convert_rgb", "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize")
    names = ("processor_class", *kept, "image_mean", "image_std")
    return {"video_processor_type": "LlavaOnevisionVideoProcessor", **{name: images[name] for name in names}}


def processor_config(config: LlavaConfig, image_token: str) -> dict[str, Any]:
    """processor_config.json."""
    strategy = "default" if config.drop_cls else "full"
    file: dict[str, Any] = {
        "processor_class": PROCESSORS[config.kind],
        "image_token": image_token,
        "vision_feature_select_strategy": strategy,
    }
    if config.kind == "llava_onevision":
        file["num_image_tokens"] = config.vision.grid**2
        file["vision_aspect_ratio"] = config.raw.get("vision_aspect_ratio", "anyres_max_9")
    else:
        file["patch_size"] = config.vision.patch_size
        file["num_additional_image_tokens"] = 1 if config.vision.has_cls_token else 0
    return file
