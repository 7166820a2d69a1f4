"""Presets say what a generation is, survive config.json, and count exactly the features that the model makes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from model.checkpoint import load_checkpoint
from model.config import LlavaConfig, RopeConfig, to_hf
from model.errors import CheckpointError
from model.generations import GENERATIONS, LLAVA_NEXT_2024_01, LLAVA_NEXT_2024_05, MODEL_CARD_GRIDS, Generation
from model.geometry import Canvas
from model.images import PreparedImage
from model.llava import LlavaModel
from model.tiny import make_tiny_checkpoint

ALL: dict[str, Generation] = {
    **GENERATIONS,
    "2024-01, the model card's canvases": replace(LLAVA_NEXT_2024_01, grids=MODEL_CARD_GRIDS),
    "2024-01, transformers' rounding": replace(LLAVA_NEXT_2024_01, rounding="round7"),
    "2024-01, one base view of several": replace(LLAVA_NEXT_2024_01, several_images="base"),
    "2024-01, padded single views": replace(LLAVA_NEXT_2024_01, images="pad", grids=()),
    "2024-05, four tiles": replace(LLAVA_NEXT_2024_05, max_tiles=4),
    "2024-05, one tile, transformers' rounding": replace(LLAVA_NEXT_2024_05, max_tiles=1, rounding="round7"),
    "2024-05, no budget": replace(LLAVA_NEXT_2024_05, max_tiles=None),
}


class FakeTower(nn.Module):
    """As many features a tile as the real tower's, one number each."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tiles.shape[0], self.tokens, 1)


def model_of(generation: Generation) -> LlavaModel:
    """Real tiles, patches and canvases around a tower that computes nothing."""
    narrow = replace(
        generation.text, hidden_size=1, heads=1, kv_heads=1, head_dim=2, layers=0, vocab_size=1, intermediate_size=1
    )
    config = replace(replace(generation, text=narrow, image_token_id=0).config)
    with torch.device("meta"):
        model = LlavaModel(config)
    model.vision_tower = FakeTower(config.vision.grid**2)  # type: ignore[assignment]
    model.multi_modal_projector = nn.Identity()  # type: ignore[assignment]
    model.language_model.to_empty(device="cpu")
    if config.has_newline:
        model.image_newline = nn.Parameter(torch.zeros(1))
    return model


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    """Pictures of every size, thin ones up to 1:50, and lines one pixel wide."""
    short = draw(st.integers(1, 2000))
    long = draw(st.one_of(st.integers(short, 50 * short), st.integers(1, 20_000)))
    if draw(st.integers(0, 4)) == 0:
        short = 1
    return draw(st.sampled_from([(short, long), (long, short)]))


@pytest.mark.parametrize("generation", ALL.values(), ids=ALL)
@torch.inference_mode()
def test_the_count_is_the_features_produced_for_every_size(generation: Generation) -> None:
    model = model_of(generation)
    geometry = model.config.geometry

    @settings(max_examples=40, deadline=None)
    @given(st.lists(sizes(), min_size=1, max_size=3))
    def hold(pictures: list[tuple[int, int]]) -> None:
        layouts = [geometry.layout(*size, len(pictures)) for size in pictures]
        images = [PreparedImage(torch.empty(layout.tiles, 0), layout, "") for layout in layouts]
        counts = [features.shape[0] for features in model.encode_images(images)]
        assert counts == [layout.tokens for layout in layouts]
        assert max(counts) <= geometry.max_tokens

    hold()


@pytest.mark.parametrize("generation", ALL.values(), ids=ALL)
def test_config_json_keeps_a_generation_whole(generation: Generation) -> None:
    raw = json.loads(json.dumps(to_hf(generation.config)))
    assert LlavaConfig.from_hf(raw) == generation.config


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig("llama3", 5e5, 8.0, 8192, 1.0, 4.0),
        RopeConfig("yarn", 1e6, 4.0, 32768, beta_fast=16.0, attention_factor=1.1),
        RopeConfig("linear", factor=2.0, original_context=4096),
    ],
)
def test_config_json_keeps_scaled_positions(rope: RopeConfig) -> None:
    config = replace(LLAVA_NEXT_2024_01, text=replace(LLAVA_NEXT_2024_01.text, rope=rope)).config
    assert LlavaConfig.from_hf(json.loads(json.dumps(to_hf(config)))) == config


def test_config_json_lists_canvases_as_hugging_face_reads_them() -> None:
    config = LLAVA_NEXT_2024_01.config
    assert config.canvases[0] == Canvas(width=336, height=672)
    assert to_hf(config)["image_grid_pinpoints"][0] == [672, 336]


def test_the_parts_have_the_sizes_of_their_papers() -> None:
    def parameters(generation: str) -> int:
        with torch.device("meta"):
            connector = LlavaModel(
                replace(GENERATIONS[generation].config, text=replace(GENERATIONS[generation].text, layers=1))
            ).multi_modal_projector
        return sum(parameter.numel() for parameter in connector.parameters())

    assert parameters("llava-1.0") == 1024 * 4096 + 4096
    assert round(parameters("llava-1.5") / 1e6, 2) == 20.98
    assert round(parameters("llava-next-2024-05") / 1e6, 2) == 2.23
    tokens = {name: generation.config.geometry.layout(336, 336).tokens for name, generation in GENERATIONS.items()}
    assert (tokens["llava-1.0"], tokens["llava-1.5"]) == (256, 576)


@pytest.mark.parametrize("name", GENERATIONS)
def test_a_tiny_checkpoint_of_every_generation_loads(name: str, tmp_path: Path) -> None:
    config = load_checkpoint(make_tiny_checkpoint(tmp_path, generation=name)).config
    assert (config.generation, config.image_mode) == (name, GENERATIONS[name].images)


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision"])
def test_without_our_section_config_json_means_what_transformers_does(kind: str, tmp_path: Path) -> None:
    raw = json.loads((make_tiny_checkpoint(tmp_path, kind=kind) / "config.json").read_text())  # type: ignore[arg-type]
    raw.pop("tephra", None)
    config = LlavaConfig.from_hf(raw)
    assert (config.connector, config.rounding, config.generation) == ("mlp", "round7", None)
    assert config.several_images == ("base" if kind == "llava_onevision" else "tiles")
    assert config.max_tiles == (9 if kind == "llava_onevision" else None)


@torch.inference_mode()
def test_a_patch_dropped_in_place_of_a_cls_token_is_not_counted(tmp_path: Path) -> None:
    path = make_tiny_checkpoint(tmp_path, kind="llava", vision="siglip")
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "vision_feature_select_strategy": "default"}))
    checkpoint = load_checkpoint(path, dtype=torch.float32)
    image = checkpoint.preprocessor.prepare_rgb(Image.new("RGB", (30, 20)), "name")
    [features] = checkpoint.model.encode_images([image])
    assert image.layout.tokens == features.shape[0] == 15  # of 16 patches, as in transformers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tephra": []}, "tephra: expected a JSON object"),
        ({"tephra": {"connector": "resampler"}}, "tephra.connector: expected mlp or linear, got 'resampler'"),
        ({"tephra": {"images": "hd9"}}, "tephra.images: expected anyres or hd"),
        ({"tephra": {"rounding": "up"}}, "tephra.rounding"),
        ({"tephra": {"several_images": "all"}}, "tephra.several_images"),
        ({"tephra": {"generation": 5}}, "tephra.generation"),
        ({"tephra": {"max_tiles": 4}}, "contradicts vision_aspect_ratio 'anyres_max_9'"),
        ({"tephra": {"max_tiles": 0}}, "tephra.max_tiles: expected a positive"),
        ({"vision_aspect_ratio": "anyres_max_0"}, "expected anyres_max_N or anyres"),
        ({"vision_aspect_ratio": 9}, "expected anyres_max_N or anyres"),
        ({"image_grid_pinpoints": [[384, 400]]}, "not made of whole tiles of 384 pixels"),
        ({"vision_feature_select_strategy": "default"}, "can only be joined with 'full'"),
        ({"model_type": "llava", "tephra": {"images": "hd"}}, "expected crop or pad"),
    ],
)
def test_a_config_that_contradicts_itself_says_which_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        LlavaConfig.from_hf({**to_hf(LLAVA_NEXT_2024_05.config), **change})
