"""Our model against transformers on the same random weights: prompts, pixels, logits and greedy answers, in fp32.

Seen on these weights: logits differ by at most 8e-5 where the largest is about 9, pixels by at most 5e-7 (transformers
multiplies by 1/255 in float64).
"""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from model.attention import SegmentAttention
from model.checkpoint import Checkpoint, load_checkpoint
from model.images import PreparedImage
from model.prompts import ChatMessage, ImagePart, TextPart
from model.tiny import make_tiny_checkpoint

LOGITS = 5e-4  # absolute; logits span about +-9
PIXELS = 1e-6
PICTURES = {
    "wide": [(300, 200)],
    "tall": [(90, 400)],
    "tiny": [(3, 2)],
    "square": [(112, 112)],
    "two": [(64, 64), (200, 50)],
    "none": [],
}


class Pair:
    """The same checkpoint here and in transformers."""

    def __init__(self, path: Path) -> None:
        self.ours: Checkpoint = load_checkpoint(path, dtype=torch.float32)
        self.theirs = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(path)


@pytest.fixture(
    scope="module",
    params=[
        (k, v, t) for k in ("llava", "llava_next") for v in ("clip", "siglip") for t in ("llama", "mistral", "qwen2")
    ],
    ids="-".join,
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    kind, vision, text = request.param
    path = make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), kind=kind, vision=vision, text=text, seed=3)
    return Pair(path)


def png(width: int, height: int) -> bytes:
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


def conversation(images: int) -> list[ChatMessage]:
    return [ChatMessage("user", (*[ImagePart()] * images, TextPart("What is this?")))]


def inputs_of(
    pair: Pair, sizes: list[tuple[int, int]]
) -> tuple[torch.Tensor, list[PreparedImage], dict[str, torch.Tensor]]:
    files = [png(*size) for size in sizes]
    images = [pair.ours.preprocessor.prepare(data) for data in files]
    ids = torch.tensor(pair.ours.prompter.build(conversation(len(sizes)), [image.layout for image in images]))
    asked = [
        {"role": "user", "content": [*[{"type": "image"}] * len(sizes), {"type": "text", "text": "What is this?"}]}
    ]
    text = pair.processor.apply_chat_template(asked, add_generation_prompt=True)
    pictures = [Image.open(io.BytesIO(data)) for data in files] or None
    return ids, images, dict(pair.processor(text=text, images=pictures, return_tensors="pt"))


def our_logits(checkpoint: Checkpoint, rows: list[tuple[torch.Tensor, list[PreparedImage]]]) -> torch.Tensor:
    """Logits of every token of rows laid end to end."""
    features = [checkpoint.model.encode_images(images) for _, images in rows]
    embeddings = torch.cat([checkpoint.model.embed(ids, part) for (ids, _), part in zip(rows, features, strict=True)])
    lengths = [len(ids) for ids, _ in rows]
    positions = torch.cat([torch.arange(length) for length in lengths])
    hidden = checkpoint.model.language_model(embeddings, positions, SegmentAttention(lengths))
    return checkpoint.model.language_model.logits(hidden)


@pytest.mark.parametrize("sizes", PICTURES.values(), ids=PICTURES)
@torch.inference_mode()
def test_prompt_pixels_and_logits_are_those_of_transformers(pair: Pair, sizes: list[tuple[int, int]]) -> None:
    ids, images, theirs = inputs_of(pair, sizes)
    assert theirs["input_ids"][0].tolist() == ids.tolist()
    for index, image in enumerate(images):
        pixels = theirs["pixel_values"][index]
        pixels = pixels[: image.layout.tiles] if pixels.dim() == 4 else pixels[None]
        assert (pixels - image.pixels).abs().max() <= PIXELS
    difference = (our_logits(pair.ours, [(ids, images)]) - pair.theirs(**theirs).logits[0]).abs().max()
    assert difference <= LOGITS


@torch.inference_mode()
def test_greedy_tokens_are_those_of_transformers(pair: Pair) -> None:
    ids, images, theirs = inputs_of(pair, PICTURES["two"])
    expected = pair.theirs.generate(**theirs, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, len(ids) :]
    drawn: list[int] = []
    for _ in range(len(expected)):
        row = torch.cat([ids, torch.tensor(drawn, dtype=torch.long)])
        drawn.append(int(our_logits(pair.ours, [(row, images)])[-1].argmax()))
    assert drawn == expected.tolist()


@torch.inference_mode()
def test_rows_of_unequal_length_in_one_batch_answer_as_they_do_alone(pair: Pair) -> None:
    rows = [inputs_of(pair, sizes)[:2] for sizes in PICTURES.values()]
    together = our_logits(pair.ours, rows).split([len(ids) for ids, _ in rows])
    for row, logits in zip(rows, together, strict=True):
        assert (our_logits(pair.ours, [row]) - logits).abs().max() <= LOGITS
