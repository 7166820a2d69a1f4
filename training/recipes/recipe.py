"""What a recipe says. One is a small difference to its parent: `dataclasses.replace` changes one to three fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from training.data.batches import ImageView

PartName = Literal["vision_tower", "connector", "language_model"]
PART_NAMES: tuple[PartName, ...] = ("vision_tower", "connector", "language_model")


@dataclass(frozen=True)
class PartPlan:
    """How one part of the model is trained. `lora_rank` 0 trains its weights whole."""

    learning_rate: float
    lora_rank: int = 0
    lora_alpha: float = 0.0


@dataclass(frozen=True)
class DataPlan:
    """A file in the LLaVA conversation format below the data folder, and where its images are."""

    file: str
    images: str


@dataclass(frozen=True)
class SeeingRecipe:
    """A stage in which vision tower or connector alone learns scenes, patch by patch (`training.seeing`)."""

    name: str
    purpose: str
    parts: Mapping[PartName, PartPlan]  # the vision tower or the connector
    data: DataPlan
    init_from: str | None = None
    head_rate: float = 1e-3
    batch: int = 64
    epochs: float = 1.0
    warmup: float = 0.03
    clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """One stage of training. Parts that `parts` does not name are frozen."""

    name: str
    purpose: str
    parts: Mapping[PartName, PartPlan]
    data: DataPlan
    view: ImageView = "full"
    init_from: str | None = None  # the recipe whose trained parts this stage starts from
    batch: int = 32  # rows a step, over all processes
    epochs: float = 1.0
    max_length: int = 2048
    warmup: float = 0.03  # share of all steps
    weight_decay: float = 0.0
    clip: float = 1.0  # gradient norm
    seed: int = 0
