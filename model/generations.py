"""The five generations of LLaVA, each said as what changed since the one before.

A generation is a tower, a connector, a way of laying out images, and the language model that its makers paired it with.
Facts: the papers of LLaVA (2304.08485) and LLaVA-1.5 (2310.03744, with 1.5-HD in its appendix), the LLaVA-NeXT posts of
2024-01-30 and 2024-05-25, and the released code and configurations. Rules are those of that code; where transformers
has another, a `dataclasses.replace` makes it so (`rounding="round7"`). docs/generations.md has the table and reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from model.config import LlavaConfig, RopeConfig, TextConfig, VisionConfig
from model.config.llava import ModelType
from model.geometry import Canvas, ImageMode, Rounding, SeveralImages

Grids = tuple[tuple[int, int], ...]  # tiles (across, down), in the order in which canvases are tried

CLIP_L_224 = VisionConfig("clip", 224, 14, 1024, 4096, 24, 16, "quick_gelu", 1e-5)
CLIP_L_336 = replace(CLIP_L_224, image_size=336)
SIGLIP_SO400M = VisionConfig("siglip", 384, 14, 1152, 4304, 26, 16, "gelu_pytorch_tanh", 1e-6)  # the 27th layer is cut

VICUNA_7B = TextConfig(  # 32000 tokens of Llama, <image>, <pad>, padded to a multiple of 64
    "llama", 32064, 4096, 11008, 32, 32, 32, 128, 2048, 1e-6, "silu", False, False, False, False, RopeConfig()
)
VICUNA_15_7B = replace(VICUNA_7B, context_length=4096, norm_eps=1e-5)
QWEN_15_05B = TextConfig(
    "qwen2", 151936, 1024, 2816, 24, 16, 16, 64, 32768, 1e-6, "silu", True, True, False, False, RopeConfig(theta=1e6)
)

HD_GRIDS: Grids = tuple((across, down) for across in range(1, 7) for down in range(1, 7) if across * down <= 6)
RELEASED_GRIDS: Grids = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
MODEL_CARD_GRIDS: Grids = ((2, 2), (1, 4), (4, 1))  # 672x672, 336x1344, 1344x336
SIX_BY_SIX: Grids = tuple((across, down) for across in range(1, 7) for down in range(1, 7))


@dataclass(frozen=True)
class Generation:
    """One generation; `model_type` is the Hugging Face class that is nearest to it."""

    name: str
    model_type: ModelType
    vision: VisionConfig
    feature_layer: int  # as Hugging Face counts: -1 is the last layer's output, before any norm behind it
    text: TextConfig
    image_token_id: int
    connector: Literal["mlp", "linear"]
    activation: str  # of the connector: "gelu", or "relu" as some descriptions of 2024-05 have it
    images: ImageMode
    grids: Grids = ()
    rounding: Rounding = "round7"
    max_tiles: int | None = None
    several_images: SeveralImages = "tiles"

    @property
    def config(self) -> LlavaConfig:
        """A checkpoint of this generation. For one of another size, replace `vision`, `text` and `image_token_id`."""
        tile = self.vision.image_size
        return LlavaConfig(
            kind=self.model_type,
            vision=self.vision,
            text=self.text,
            feature_layer=self.feature_layer,
            drop_cls=self.vision.has_cls_token,
            connector_activation=self.activation,
            connector_bias=True,
            image_token_id=self.image_token_id,
            canvases=tuple(Canvas(across * tile, down * tile) for across, down in self.grids),
            connector=self.connector,
            image_mode=self.images,
            rounding=self.rounding,
            max_tiles=self.max_tiles,
            several_images=self.several_images,
            generation=self.name,
        )


LLAVA_1_0 = Generation("llava-1.0", "llava", CLIP_L_224, -2, VICUNA_7B, 32000, "linear", "gelu", "crop")
LLAVA_1_5 = replace(LLAVA_1_0, name="llava-1.5", vision=CLIP_L_336, text=VICUNA_15_7B, connector="mlp", images="pad")
LLAVA_1_5_HD = replace(
    LLAVA_1_5, name="llava-1.5-hd", model_type="llava_next", vision=CLIP_L_224, images="hd", grids=HD_GRIDS
)
LLAVA_NEXT_2024_01 = replace(
    LLAVA_1_5_HD,
    name="llava-next-2024-01",
    vision=CLIP_L_336,
    images="anyres",
    grids=RELEASED_GRIDS,
    rounding="truncate",
)
LLAVA_NEXT_2024_05 = replace(
    LLAVA_NEXT_2024_01,
    name="llava-next-2024-05",
    model_type="llava_onevision",
    vision=SIGLIP_SO400M,
    feature_layer=-1,
    text=QWEN_15_05B,
    image_token_id=151646,
    grids=SIX_BY_SIX,
    max_tiles=9,
    several_images="base",
)

GENERATIONS: Mapping[str, Generation] = {
    generation.name: generation
    for generation in (LLAVA_1_0, LLAVA_1_5, LLAVA_1_5_HD, LLAVA_NEXT_2024_01, LLAVA_NEXT_2024_05)
}
