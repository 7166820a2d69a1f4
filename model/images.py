"""From an image's bytes to the tiles that the vision tower sees.

The layout says which views there are (`model.geometry`), `model.views` makes them, and this turns them into numbers.
CPU work: call it off the event loop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.config import LlavaConfig
from model.errors import CheckpointError
from model.geometry import ImageGeometry, ImageLayout
from model.image_file import decode_rgb, image_digest, read_header
from model.views import base_view, tile_views

Triple = tuple[float, float, float]

_MEANS: dict[str, Triple] = {"clip": (0.48145466, 0.4578275, 0.40821073), "siglip": (0.5, 0.5, 0.5)}
_STDS: dict[str, Triple] = {"clip": (0.26862954, 0.26130258, 0.27577711), "siglip": (0.5, 0.5, 0.5)}


@dataclass(frozen=True)
class PreparedImage:
    """An image as the vision tower takes it. `pixels` is [tiles, 3, S, S] float32, the base view first."""

    pixels: torch.Tensor
    layout: ImageLayout
    digest: str  # of the file's bytes and dimensions, and of the layout where the same image has another one


@dataclass(frozen=True)
class ImagePreprocessor:
    """One checkpoint's way from picture to tiles."""

    geometry: ImageGeometry
    mean: Triple
    std: Triple

    def prepare(self, data: bytes, *, images: int = 1) -> PreparedImage:
        """Decodes and lays out an image file, one of `images` in its conversation. Raises ImageError."""
        header = read_header(data)
        return self.prepare_rgb(decode_rgb(data), image_digest(data, header), images=images)

    def prepare_rgb(self, image: Image.Image, digest: str, *, images: int = 1) -> PreparedImage:
        """Lays out an RGB image that is already decoded."""
        layout = self.geometry.layout(*image.size, images)
        if layout.canvas is None and self.geometry.canvases:
            digest += ":base"
        return self._prepare(image, layout, digest)

    def base_view(self, image: Image.Image, digest: str) -> PreparedImage:
        """The base view alone and flat, whatever the checkpoint's canvases: what the early training stages use."""
        single = replace(self.geometry, canvases=(), newline=False)
        return self._prepare(image, single.layout(*image.size), digest)

    def _prepare(self, image: Image.Image, layout: ImageLayout, digest: str) -> PreparedImage:
        size = self.geometry.tile
        red, green, blue = (int(value * 255) for value in self.mean)
        views = [base_view(image, layout.base, size, (red, green, blue)), *tile_views(image, layout, size)]
        return PreparedImage(self._normalise(views), layout, digest)

    def _normalise(self, views: list[Image.Image]) -> torch.Tensor:
        """[tiles, 3, S, S] float32: values to 0..1, mean taken off, divided by the standard deviation."""
        values = _values(self.mean, self.std)
        normalised = np.empty((len(views), 3, self.geometry.tile, self.geometry.tile), np.float32)
        for tile, view in zip(normalised, views, strict=True):
            pixels = np.asarray(view)  # [S, S, 3] uint8
            for channel in range(3):
                np.take(values[channel], pixels[..., channel], out=tile[channel])
        return torch.from_numpy(normalised)


@lru_cache(maxsize=16)
def _values(mean: Triple, std: Triple) -> np.ndarray:
    """[3, 256] float32: what each 8-bit value becomes; rounded where Hugging Face's Pillow processors round."""
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return np.stack([(scaled - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)])


def read_preprocessor(path: Path, config: LlavaConfig) -> ImagePreprocessor:
    """Reads `preprocessor_config.json` (or `processor_config.json` of transformers 5). Raises CheckpointError."""
    raw = _processor_json(path)
    geometry = config.geometry
    if config.kind == "llava":  # how the whole picture becomes a square is the preprocessor's to say
        if raw.get("do_pad", config.image_mode == "pad"):
            geometry = replace(geometry, base="pad")
        elif raw.get("do_center_crop", config.vision.kind == "clip"):
            geometry = replace(geometry, base="crop")
        else:
            geometry = replace(geometry, base="stretch")
    mean = _triple(raw, "image_mean", _MEANS[config.vision.kind])
    std = _triple(raw, "image_std", _STDS[config.vision.kind])
    if not all(std):
        raise CheckpointError(f"image_std: expected three numbers other than 0, got {std!r}")
    return ImagePreprocessor(geometry, mean, std)


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


def _triple(raw: Mapping[str, Any], name: str, default: Triple) -> Triple:
    values = raw.get(name) or default
    try:
        first, second, third = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: expected three numbers, got {values!r}") from error
    return first, second, third
