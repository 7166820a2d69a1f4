"""The same random checkpoint here and in transformers, and the same questions to both."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaOnevisionProcessor,
)

from model.attention import SegmentAttention
from model.checkpoint import Checkpoint, load_checkpoint
from model.checkpoint.files import read_json
from model.images import PreparedImage
from model.prompts import ChatMessage, ImagePart, TextPart

Size = tuple[int, int]  # (width, height)
Row = tuple[torch.Tensor, list[PreparedImage]]

QUESTION = "What is this?"


def png(width: int, height: int) -> bytes:
    """A picture of noise: every pixel counts."""
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG", compress_level=0)
    return out.getvalue()


class _ImagesOnly(LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor without its part for videos, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


class Pair:
    """One checkpoint in both. `sizes` are those of the pictures of a question."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.ours: Checkpoint = load_checkpoint(path, dtype=dtype)
        self.theirs = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).eval()
        self._nested = self.ours.config.kind == "llava_onevision"  # pictures of one conversation belong together
        self.processor = _onevision_processor(path) if self._nested else AutoProcessor.from_pretrained(path)

    def row(self, sizes: list[Size]) -> Row:
        """Token ids and prepared images of a question about pictures of these sizes."""
        return self.asked([png(*size) for size in sizes], QUESTION)

    def asked(self, files: list[bytes], question: str) -> Row:
        """The same of any question about any pictures."""
        images = [self.ours.preprocessor.prepare(file, images=len(files)) for file in files]
        asked = [ChatMessage("user", (*[ImagePart()] * len(files), TextPart(question)))]
        return torch.tensor(self.ours.prompter.build(asked, [image.layout for image in images])), images

    def logits(self, rows: list[Row]) -> torch.Tensor:
        """Logits of every token of rows laid end to end."""
        model = self.ours.model
        embedded = [model.embed(ids, model.encode_images(images)) for ids, images in rows]
        lengths = [len(ids) for ids, _ in rows]
        positions = torch.cat([torch.arange(length) for length in lengths])
        hidden = model.language_model(torch.cat(embedded), positions, SegmentAttention(lengths))
        return model.language_model.logits(hidden)

    def their_inputs(self, sizes: list[Size]) -> dict[str, torch.Tensor]:
        """What transformers' processor makes of the same question."""
        content = [*[{"type": "image"}] * len(sizes), {"type": "text", "text": QUESTION}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        pictures: Any = [Image.open(io.BytesIO(png(*size))) for size in sizes] or None
        if self._nested and pictures:
            pictures = [pictures]
        inputs = dict(self.processor(text=text, images=pictures, return_tensors="pt"))
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(torch.float32)
        return inputs

    def their_logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {
            name: value.to(self.theirs.dtype) if name == "pixel_values" else value for name, value in inputs.items()
        }
        return self.theirs(**inputs).logits[0]


def _onevision_processor(path: Path) -> LlavaOnevisionProcessor:
    told = read_json(path / "processor_config.json")
    names = ("num_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio")
    return _ImagesOnly(
        AutoImageProcessor.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
        None,
        chat_template=(path / "chat_template.jinja").read_text(),
        **{name: told[name] for name in names},
    )


@pytest.fixture(scope="session")
def picture() -> Callable[[int, int], bytes]:
    """A PNG file of noise, of a width and height."""
    return png


@pytest.fixture(scope="session")
def make_pair() -> Callable[[Path, torch.dtype], Pair]:
    return Pair
