"""From an image's bytes to the tiles that the vision tower sees.

Knows the three ways of the family: shortest side and centre crop (LLaVA-1.0), pad to square (1.5), AnyRes tiles (NeXT).
Resizing is Pillow's bicubic on 8-bit pixels, as in the references and in Hugging Face's Pillow processors. CPU work:
call it off the event loop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.config import ImageMode, LlavaConfig
from model.errors import CheckpointError, ModelError
from model.geometry import ImageGeometry, ImageLayout, fit_within
from model.image_file import decode_rgb, image_digest, read_header


@dataclass(frozen=True)
class PreparedImage:
    """An image as the vision tower takes it. `pixels` is [tiles, 3, S, S] float32, the base view first."""

    pixels: torch.Tensor
    layout: ImageLayout
    digest: str  # of the file's bytes and dimensions


@dataclass(frozen=True)
class ImagePreprocessor:
    """One checkpoint's way from picture to tiles."""

    mode: ImageMode
    geometry: ImageGeometry
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def prepare(self, data: bytes) -> PreparedImage:
        """Decodes and lays out an image file. Raises ImageError."""
        header = read_header(data)
        return self.prepare_rgb(decode_rgb(data), image_digest(data, header))

    def prepare_rgb(self, image: Image.Image, digest: str) -> PreparedImage:
        """Lays out an RGB image that is already decoded."""
        layout = self.geometry.layout(*image.size)
        return PreparedImage(self._normalise(self._views(image, layout)), layout, digest)

    def base_view(self, image: Image.Image, digest: str) -> PreparedImage:
        """The base view alone, whatever the checkpoint's canvases: what the early training stages use."""
        layout = ImageGeometry(self.geometry.tile, self.geometry.grid, (), self.geometry.extra_tokens).layout(
            *image.size
        )
        return PreparedImage(self._normalise(self._views(image, layout)), layout, digest)

    def _views(self, image: Image.Image, layout: ImageLayout) -> list[Image.Image]:
        size = self.geometry.tile
        if self.mode == "crop":
            return [_crop_centre(image, size)]
        if self.mode == "pad":
            ground = tuple(int(value * 255) for value in self.mean)
            return [_pad_square(image, ground).resize((size, size), Image.Resampling.BICUBIC)]
        return [image.resize((size, size), Image.Resampling.BICUBIC), *_tiles(image, layout, size)]

    def _normalise(self, views: list[Image.Image]) -> torch.Tensor:
        """[tiles, 3, S, S] float32: values to 0..1, mean taken off, divided by the standard deviation."""
        stacked = np.stack([np.asarray(view) for view in views])  # [tiles, S, S, 3] uint8
        scaled = stacked.astype(np.float32) * np.float32(1 / 255)
        scaled -= np.asarray(self.mean, np.float32)
        scaled /= np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def read_preprocessor(path: Path, config: LlavaConfig) -> ImagePreprocessor:
    """Reads `preprocessor_config.json` (or `processor_config.json` of transformers 5). Raises CheckpointError."""
    raw = _processor_json(path)
    mode: ImageMode = "anyres" if config.kind == "llava_next" else ("pad" if raw.get("do_pad") else "crop")
    default = 0.5 if config.vision.kind == "siglip" else None
    mean = _triple(raw, "image_mean", (default,) * 3 if default else (0.48145466, 0.4578275, 0.40821073))
    std = _triple(raw, "image_std", (default,) * 3 if default else (0.26862954, 0.26130258, 0.27577711))
    return ImagePreprocessor(mode, config.geometry, mean, std)


def _processor_json(path: Path) -> Mapping[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = path / name
        if file.is_file():
            try:
                raw = json.loads(file.read_text("utf-8"))
            except ValueError as error:
                raise CheckpointError(f"{file}: not valid JSON") from error
            section = raw.get("image_processor", raw)
            if "image_mean" in section or name == "preprocessor_config.json":
                return dict(section)
    return {}


def _triple(raw: Mapping[str, Any], name: str, default: tuple[Any, ...]) -> tuple[float, float, float]:
    values = raw.get(name) or default
    try:
        first, second, third = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: expected three numbers, got {values!r}") from error
    return first, second, third


def _crop_centre(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    target = (size, scaled) if width <= height else (scaled, size)
    resized = image.resize(target, Image.Resampling.BICUBIC)
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    return resized.crop((left, top, left + size, top + size))


def _pad_square(image: Image.Image, ground: tuple[int, ...]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), ground)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _tiles(image: Image.Image, layout: ImageLayout, size: int) -> list[Image.Image]:
    """Crops in row-major order from the canvas on which the picture is centred on black."""
    if layout.canvas is None:
        return []
    canvas = layout.canvas
    if layout.tiles_across * size != canvas.width or layout.tiles_down * size != canvas.height:
        raise ModelError(f"canvas {canvas.width}x{canvas.height} is not made of whole tiles of {size} pixels")
    width, height = fit_within(*image.size, canvas)
    ground = Image.new("RGB", canvas)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    ground.paste(resized, ((canvas.width - width) // 2, (canvas.height - height) // 2))
    return [
        ground.crop((x, y, x + size, y + size))
        for y in range(0, canvas.height, size)
        for x in range(0, canvas.width, size)
    ]
