"""LLaVA-1.0 and LLaVA-1.5-HD, which transformers has no class for, against a computation written out step by step.

Only the vision tower and the language model are transformers', each asked for what it is. All between them, from the
picture to the embeddings, is done here the long way: canvases by trying all, padding by a mask of pixels, rows by
loops, in fp32. Seen in fp32: features differ by at most 9.2e-5 where the largest is 76, logits by at most 2.5e-5 (in
the mean 1.8e-6). In bf16, against the same computation in fp32: logits by at most 0.75, in the mean 0.023 to 0.046.
"""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionModel, LlamaForCausalLM

from model.attention import SegmentAttention
from model.checkpoint import Checkpoint, load_checkpoint
from model.generations import LLAVA_1_0
from model.images import PreparedImage
from model.prompts import ChatMessage, ImagePart, TextPart
from model.tiny import make_tiny_checkpoint

FEATURES = 1e-5  # of the largest
LOGITS = 5e-4  # absolute; logits span about +-10
BFLOAT16 = (1.0, 0.06)  # the largest and the mean difference of logits in bf16 from those in fp32
TILE, PATCH, GRID = 56, 14, 4
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [(112, 112), (300, 200), (90, 400), (3, 2), (1, 1), (500, 10), (9, 450), (1900, 1400)]
QUESTIONS: list[list[tuple[int, int]]] = [*([size] for size in SIZES), [(64, 64), (200, 50)], []]


class Reference:
    """The parts of a checkpoint as transformers and plain matrices."""

    def __init__(self, path: Path) -> None:
        self.weights = load_file(path / "model.safetensors")
        raw = load_checkpoint(path, dtype=torch.float32).config.raw
        self.tower = CLIPVisionModel(CLIPVisionModel.config_class(**raw["vision_config"])).eval()
        self.language = LlamaForCausalLM(LlamaForCausalLM.config_class(**raw["text_config"])).eval()
        self._fill(self.tower, "vision_tower.", "vision_tower.vision_model.")
        self._fill(self.language, "language_model.", "language_model.")

    def _fill(self, module: torch.nn.Module, *prefixes: str) -> None:
        named = module.state_dict()
        for prefix in prefixes:
            found = {name[len(prefix) :]: value for name, value in self.weights.items() if name.startswith(prefix)}
            if found.keys() >= named.keys() - {"embeddings.position_ids"}:
                module.load_state_dict({name: found[name] for name in named})
                return
        raise AssertionError(f"{type(module).__name__} wants {sorted(named)[:3]}")

    def see(self, view: Image.Image, layer: int) -> torch.Tensor:
        """[16, 32]: the patches of one tile after a layer, without CLS."""
        pixels = torch.tensor(list(view.tobytes()), dtype=torch.float64).view(TILE, TILE, 3) / 255
        pixels = ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).float().permute(2, 0, 1)
        return self.tower(pixels[None], output_hidden_states=True).hidden_states[layer][0, 1:]

    def project(self, features: torch.Tensor) -> torch.Tensor:
        name = "multi_modal_projector.linear_"
        first = features @ self.weights[f"{name}1.weight"].T + self.weights[f"{name}1.bias"]
        if f"{name}2.weight" not in self.weights:
            return first
        return F.gelu(first) @ self.weights[f"{name}2.weight"].T + self.weights[f"{name}2.bias"]

    def answer(self, ids: list[int], features: torch.Tensor) -> torch.Tensor:
        """Logits of a prompt whose image tokens (259) take the features in order."""
        table, taken, rows = self.weights["language_model.model.embed_tokens.weight"], iter(features), []
        for token in ids:
            rows.append(next(taken) if token == 259 else table[token])
        assert next(taken, None) is None
        return self.language(inputs_embeds=torch.stack(rows)[None]).logits[0]


def pictures_of(picture: Callable[[int, int], bytes], sizes: list[tuple[int, int]]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(picture(*size))).convert("RGB") for size in sizes]


def hd_features(reference: Reference, image: Image.Image) -> torch.Tensor:
    """LLaVA-1.5's paper, appendix on HD, word by word; the global view stands first, as in LLaVA-NeXT."""
    grids = [(a, 1) for a in range(1, 7)] + [(1, b) for b in range(2, 7)] + [(2, 2), (2, 3), (3, 2)]
    grids.sort()
    scored = []
    for place, (across, down) in enumerate(grids):
        scale = min(across * TILE / image.width, down * TILE / image.height)
        shown = min(int(image.width * scale) * int(image.height * scale), image.width * image.height)
        scored.append((-shown, across * down * TILE * TILE - shown, place))
    across, down = grids[min(scored)[2]]
    canvas, mask = Image.new("RGB", (across * TILE, down * TILE)), Image.new("L", (across * TILE, down * TILE))
    wide, tall = canvas.width / image.width, canvas.height / image.height
    size = (canvas.width, min(canvas.height, -int(-image.height * wide // 1)))
    if wide >= tall:
        size = (min(canvas.width, -int(-image.width * tall // 1)), canvas.height)
    corner = ((canvas.width - size[0]) // 2, (canvas.height - size[1]) // 2)
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC), corner)
    mask.paste(255, (*corner, corner[0] + size[0], corner[1] + size[1]))

    cells: dict[tuple[int, int], torch.Tensor] = {}
    for y in range(down):
        for x in range(across):
            tile = canvas.crop((x * TILE, y * TILE, (x + 1) * TILE, (y + 1) * TILE))
            for place, feature in enumerate(reference.project(reference.see(tile, -2))):
                cells[y * GRID + place // GRID, x * GRID + place % GRID] = feature
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    tokens = list(reference.project(reference.see(square.resize((TILE, TILE), Image.Resampling.BICUBIC), -2)))
    for y in range(down * GRID):
        row = []
        for x in range(across * GRID):
            patch = mask.crop((x * PATCH, y * PATCH, (x + 1) * PATCH, (y + 1) * PATCH))
            if patch.getextrema()[1] > 0:
                row.append(cells[y, x])
        if row:
            tokens += [*row, reference.weights["image_newline"]]
    return torch.stack(tokens)


def compare(
    path: Path, ours: Checkpoint, images: list[PreparedImage], expected: list[torch.Tensor], reference: Reference
) -> None:
    """Features, prompt length and logits of a question about the images."""
    found = ours.model.encode_images(images)
    for feature, wanted in zip(found, expected, strict=True):
        assert feature.shape == wanted.shape
        print(f"features: largest {float(wanted.abs().max()):.1f}, off by {float((feature - wanted).abs().max()):.1e}")
        if ours.model.dtype == torch.float32:
            assert (feature - wanted).abs().max() <= FEATURES * wanted.abs().max()
    asked = [ChatMessage("user", (*[ImagePart()] * len(images), TextPart("What is this?")))]
    ids = list(ours.prompter.build(asked, [image.layout for image in images]))
    assert AutoTokenizer.from_pretrained(path).convert_ids_to_tokens(259) == "<image>"
    embedded = ours.model.embed(torch.tensor(ids), found)
    hidden = ours.model.language_model(embedded, torch.arange(len(ids)), SegmentAttention([len(ids)]))
    wanted_features = torch.cat(expected) if expected else torch.zeros(0, 64)
    difference = (ours.model.language_model.logits(hidden).float() - reference.answer(ids, wanted_features)).abs()
    largest, mean = float(difference.max()), float(difference.mean())
    print(f"logits in {ours.model.dtype}: largest difference {largest:.1e}, mean {mean:.1e}")
    if ours.model.dtype == torch.bfloat16:
        assert largest <= BFLOAT16[0] and mean <= BFLOAT16[1]
    else:
        assert largest <= LOGITS


@pytest.fixture(scope="module")
def hd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("hd"), generation="llava-1.5-hd", seed=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", QUESTIONS, ids=str)
@torch.inference_mode()
def test_hd_is_what_its_paper_says(
    hd: Path, picture: Callable[[int, int], bytes], sizes: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    ours, reference = load_checkpoint(hd, dtype=dtype), Reference(hd)
    images = [ours.preprocessor.prepare(picture(*size), images=len(sizes)) for size in sizes]
    expected = [hd_features(reference, image) for image in pictures_of(picture, sizes)]
    compare(hd, ours, images, expected, reference)


@pytest.fixture(scope="module", params=[-1, -2], ids=["last layer", "second-to-last layer"])
def first(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    generation = replace(LLAVA_1_0, feature_layer=request.param)
    return make_tiny_checkpoint(tmp_path_factory.mktemp("first"), generation=generation, seed=5), request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", QUESTIONS, ids=str)
@torch.inference_mode()
def test_the_first_generation_is_one_linear_layer_behind_a_centre_crop(
    first: tuple[Path, int], picture: Callable[[int, int], bytes], sizes: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    path, layer = first
    ours, reference = load_checkpoint(path, dtype=dtype), Reference(path)
    images = [ours.preprocessor.prepare(picture(*size), images=len(sizes)) for size in sizes]
    assert "multi_modal_projector.linear_2.weight" not in reference.weights
    expected = []
    for image in pictures_of(picture, sizes):
        short = min(image.size)
        size = [int(TILE * side / short) for side in image.size]
        left, top = (size[0] - TILE) // 2, (size[1] - TILE) // 2
        view = image.resize((size[0], size[1]), Image.Resampling.BICUBIC).crop((left, top, left + TILE, top + TILE))
        expected.append(reference.project(reference.see(view, layer)))
    compare(path, ours, images, expected, reference)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_centre_crop_is_clips_own_to_the_last_bit(
    first: tuple[Path, int], picture: Callable[[int, int], bytes], size: tuple[int, int]
) -> None:
    ours: Any = load_checkpoint(first[0], dtype=torch.float32).preprocessor.prepare(picture(*size))
    clip = CLIPImageProcessorPil(size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE})
    theirs = clip(pictures_of(picture, [size]), return_tensors="pt")["pixel_values"]
    assert torch.equal(ours.pixels, theirs)
