"""The base's tensors and our trained parts become the tensors of the demo checkpoint.

Products run in float64 and end as bfloat16, so the order of their sums does not show: the same parts give the same
bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from deploy.demo.errors import DemoError
from deploy.demo.language_model import LanguageModel
from deploy.demo.trained_parts import LORA_FILES, WHOLE_FILES, TrainedParts
from deploy.demo.vision_tower import VisionTower

CONNECTOR_NAMES = (
    "multi_modal_projector.linear_1.weight",
    "multi_modal_projector.linear_1.bias",
    "multi_modal_projector.linear_2.weight",
    "multi_modal_projector.linear_2.bias",
    "image_newline",
)


def merged_tensors(language: LanguageModel, vision: VisionTower, parts: TrainedParts | None) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint, in bfloat16, by the names that transformers 4, 5 and vLLM load."""
    tensors = {**vision.tensors, **language.tensors}
    if parts is None:
        tensors.update(random_connector(vision.vision_config["hidden_size"], language.text_config["hidden_size"]))
    else:
        for file in (parts.folder / name for name in WHOLE_FILES if name in parts.digests):
            replace(tensors, file)
        for file in (parts.folder / name for name in LORA_FILES if name in parts.digests):
            merge_lora(tensors, file)
    missing = [name for name in CONNECTOR_NAMES if name not in tensors]
    if missing:
        raise DemoError(f"the demo's trained parts hold no {', '.join(missing)}")
    return {name: tensors[name].to(torch.bfloat16).contiguous() for name in sorted(tensors)}


def random_connector(vision_size: int, text_size: int) -> dict[str, torch.Tensor]:
    """What training starts from; the same on every machine."""
    draw = np.random.default_rng(0)

    def normal(deviation: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(deviation * draw.standard_normal(shape)).float()

    return {
        "multi_modal_projector.linear_1.weight": normal(0.02, text_size, vision_size),
        "multi_modal_projector.linear_1.bias": torch.zeros(text_size),
        "multi_modal_projector.linear_2.weight": normal(0.02, text_size, text_size),
        "multi_modal_projector.linear_2.bias": torch.zeros(text_size),
        "image_newline": normal(text_size**-0.5, text_size),
    }


def merge_lora(tensors: MutableMapping[str, torch.Tensor], file: Path) -> None:
    """W + (alpha / rank) * B @ A for every Linear in `file`."""
    stored, metadata = _read(file)
    try:
        scale = float(metadata["alpha"]) / float(metadata["rank"])
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise DemoError(f"{file} does not say its alpha and rank in its metadata") from error
    for module in sorted({key.rpartition(".lora_")[0] for key in stored}):
        weight = tensors.get(f"{module}.weight")
        a, b = stored.get(f"{module}.lora_A"), stored.get(f"{module}.lora_B")
        if weight is None or a is None or b is None:
            raise DemoError(f"{file}: {module!r} needs a lora_A, a lora_B, and a Linear of that name in the base")
        if (b.shape[0], a.shape[1]) != weight.shape or a.shape[0] != b.shape[1]:
            raise DemoError(
                f"{file}: {module}: B {list(b.shape)} @ A {list(a.shape)} does not fit the weight {list(weight.shape)}"
            )
        tensors[f"{module}.weight"] = (weight.double() + scale * (b.double() @ a.double())).float()


def replace(tensors: MutableMapping[str, torch.Tensor], file: Path) -> None:
    """Whole tensors in place of the base's. The base has no connector, so the connector's are new."""
    stored, _ = _read(file)
    for name, values in stored.items():
        base = tensors.get(name)
        if base is None and name not in CONNECTOR_NAMES:
            raise DemoError(f"{file}: {name} is no tensor of the demo")
        if base is not None and base.shape != values.shape:
            raise DemoError(f"{file}: {name} is {list(values.shape)}, the base has {list(base.shape)}")
        tensors[name] = values.float()


def _read(file: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    try:
        with safe_open(file, framework="pt") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise DemoError(f"{file} is not a readable safetensors file ({error})") from error
