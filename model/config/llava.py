"""A whole checkpoint's numbers: the parts, how they meet, and how an image becomes tiles.

What Hugging Face's keys cannot say stands in one more section of config.json, which transformers and vLLM ignore:

    "tephra": {"generation": <preset>, "connector": "mlp" | "linear", "images": "crop" | "pad" | "hd" | "anyres",
               "rounding": "truncate" | "round7", "max_tiles": <N> | null, "several_images": "tiles" | "base"}

Every key is optional; one that is absent means what transformers does for that model_type. Where Hugging Face has a key
of its own, that key counts: `image_grid_pinpoints`, `vision_aspect_ratio`, and the preprocessor's `do_pad`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from model.config.fields import one_of, section
from model.config.text import TextConfig, read_text
from model.config.vision import VisionConfig, read_vision
from model.errors import CheckpointError
from model.geometry import BaseView, Canvas, ImageGeometry, ImageMode, Rounding, SeveralImages

ModelType = Literal["llava", "llava_next", "llava_onevision"]

MODEL_TYPES = ("llava", "llava_next", "llava_onevision")
_MODES = {"llava": ("crop", "pad"), "llava_next": ("anyres", "hd", "pad", "crop")}
_MODES["llava_onevision"] = _MODES["llava_next"]
_BASE_VIEWS: dict[ImageMode, BaseView] = {"crop": "crop", "pad": "pad", "hd": "pad", "anyres": "stretch"}

# What a field is when config.json leaves it out: the defaults of transformers' configuration classes.
_NEXT_CANVASES = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))  # (height, width)
_ONEVISION_CANVASES = tuple((384 * down, 384 * across) for down in range(1, 7) for across in range(1, 7))
_FEATURES: dict[str, tuple[int, str, int]] = {  # vision_feature_layer, vision_feature_select_strategy, image token
    "llava": (-2, "default", 32000),
    "llava_next": (-2, "default", 32000),
    "llava_onevision": (-1, "full", 151646),
}


@dataclass(frozen=True)
class LlavaConfig:
    """A whole checkpoint. The way in is `from_hf`."""

    kind: ModelType
    vision: VisionConfig
    text: TextConfig
    feature_layer: int  # index into [embeddings, layer 1, ...]; negative counts from the end, as in Hugging Face
    drop_cls: bool  # vision_feature_select_strategy == "default"
    connector_activation: str
    connector_bias: bool
    image_token_id: int
    canvases: tuple[Canvas, ...]  # (width, height), in the list's order; empty unless there are tiles
    connector: Literal["mlp", "linear"] = "mlp"
    image_mode: ImageMode = "crop"  # of model_type llava, the preprocessor's do_pad has the last word
    rounding: Rounding = "round7"
    max_tiles: int | None = None  # the N of anyres_max_N
    several_images: SeveralImages = "tiles"
    generation: str | None = None  # the preset's name, where the checkpoint tells it
    raw: Mapping[str, Any] = field(repr=False, compare=False, default_factory=dict)  # config.json as it was read

    @property
    def has_newline(self) -> bool:
        """Whether there is an `image_newline` that ends each row of features."""
        return self.kind != "llava"

    @property
    def encoder_layers_used(self) -> int:
        """How many encoder layers must run for the chosen feature (the rest are never computed)."""
        layers = self.vision.layers
        used = self.feature_layer if self.feature_layer >= 0 else layers + 1 + self.feature_layer
        if not 0 <= used <= layers:
            raise CheckpointError(
                f"vision_feature_layer {self.feature_layer} does not exist: the vision tower has {layers} layers"
            )
        return used

    @property
    def geometry(self) -> ImageGeometry:
        """From (width, height) to tokens."""
        strategy_fits = self.drop_cls == self.vision.has_cls_token
        return ImageGeometry(
            tile=self.vision.image_size,
            grid=self.vision.grid,
            canvases=self.canvases,
            extra_tokens=0 if strategy_fits else -1 if self.drop_cls else 1,
            base=_BASE_VIEWS[self.image_mode],
            unpad="covered" if self.image_mode == "hd" else self.rounding,
            max_tiles=self.max_tiles,
            several_images=self.several_images,
            newline=self.has_newline and not self.canvases,
        )

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> LlavaConfig:
        """Reads a Hugging Face `config.json`. Raises CheckpointError that names the field it cannot use."""
        kind = raw.get("model_type")
        if kind not in MODEL_TYPES:
            raise CheckpointError(f"model_type {kind!r} is not served: expected {' or '.join(MODEL_TYPES)}")
        layer, strategy, token = _FEATURES[kind]
        strategy = raw.get("vision_feature_select_strategy", strategy)
        if strategy not in ("default", "full"):
            raise CheckpointError(f"vision_feature_select_strategy {strategy!r}: expected default or full")
        layer = raw.get("vision_feature_layer", layer)
        if not isinstance(layer, int):
            raise CheckpointError("vision_feature_layer: only a single layer is supported")
        vision = read_vision(section(raw, "vision_config"))
        text = read_text(section(raw, "text_config"), raw)
        token = raw.get("image_token_index", raw.get("image_token_id", token))
        if not isinstance(token, int) or not 0 <= token < text.vocab_size:
            raise CheckpointError(f"image_token_index {token!r} lies outside the vocabulary of {text.vocab_size}")
        ours = raw.get("tephra", {})
        if not isinstance(ours, Mapping):
            raise CheckpointError(f"tephra: expected a JSON object, got {ours!r}")
        generation = ours.get("generation")
        if not isinstance(generation, str | None):
            raise CheckpointError(f"tephra.generation: expected a preset's name, got {generation!r}")
        mode = one_of(ours, "tephra", "images", _MODES[kind], "crop" if kind == "llava" else "anyres")
        config = cls(
            kind=kind,
            vision=vision,
            text=text,
            feature_layer=layer,
            drop_cls=strategy == "default",
            connector_activation=raw.get("projector_hidden_act", "gelu"),
            connector_bias=raw.get("multimodal_projector_bias", True),
            image_token_id=token,
            canvases=_canvases(raw, kind, vision.image_size) if mode in ("anyres", "hd") else (),
            connector=one_of(ours, "tephra", "connector", ("mlp", "linear"), "mlp"),
            image_mode=mode,
            rounding=one_of(ours, "tephra", "rounding", ("round7", "truncate"), "round7"),
            max_tiles=_max_tiles(raw, kind, ours) if mode == "anyres" else None,
            several_images=one_of(
                ours, "tephra", "several_images", ("tiles", "base"), "base" if kind == "llava_onevision" else "tiles"
            ),
            generation=generation,
            raw=dict(raw),
        )
        config._check()
        return config

    def _check(self) -> None:
        """What the fields cannot be together."""
        self.encoder_layers_used  # noqa: B018  (raises when the layer does not exist)
        if self.canvases and self.drop_cls != self.vision.has_cls_token:
            expected = "default" if self.vision.has_cls_token else "full"
            raise CheckpointError(
                f"vision_feature_select_strategy: tiles of {self.vision.kind} features can only be joined with "
                f"{expected!r}, which leaves {self.vision.grid}x{self.vision.grid} of them"
            )


def _canvases(raw: Mapping[str, Any], kind: str, tile: int) -> tuple[Canvas, ...]:
    """Hugging Face writes canvases as (height, width); ours are (width, height), the list's order is kept."""
    default = _ONEVISION_CANVASES if kind == "llava_onevision" else _NEXT_CANVASES
    pairs: Sequence[Sequence[int]] = raw.get("image_grid_pinpoints") or default
    try:
        canvases = tuple(Canvas(width=int(width), height=int(height)) for height, width in pairs)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"image_grid_pinpoints: expected a list of [height, width], got {pairs!r}") from error
    for width, height in canvases:
        if width < tile or height < tile or width % tile or height % tile:
            raise CheckpointError(
                f"image_grid_pinpoints: [{height}, {width}] is not made of whole tiles of {tile} pixels"
            )
    return canvases


def _max_tiles(raw: Mapping[str, Any], kind: str, ours: Mapping[str, Any]) -> int | None:
    """The N of anyres_max_N: `vision_aspect_ratio` of llava_onevision, `tephra.max_tiles` of llava_next."""
    told = ours.get("max_tiles")
    if told is not None and (not isinstance(told, int) or isinstance(told, bool) or not 0 < told < 2**15):
        raise CheckpointError(f"tephra.max_tiles: expected a positive whole number or null, got {told!r}")
    if kind != "llava_onevision":
        return told
    ratio = raw.get("vision_aspect_ratio", "anyres_max_9")
    match = re.fullmatch(r"anyres(?:_max_([1-9]\d{0,3}))?", ratio) if isinstance(ratio, str) else None
    if match is None:
        raise CheckpointError(f"vision_aspect_ratio {ratio!r}: expected anyres_max_N or anyres")
    tiles = int(match[1]) if match[1] else None
    if told is not None and told != tiles:
        raise CheckpointError(f"tephra.max_tiles {told} contradicts vision_aspect_ratio {ratio!r}")
    return tiles
