"""What trains and what is frozen, said once, applied and logged; and the files in which trained parts are kept.

A part is trained whole or through LoRA (peft). Trained parts are small safetensors files: `connector.safetensors` with
whole tensors, `language_lora.safetensors` and `vision_lora.safetensors` with `<module>.lora_A` [r, in] and
`<module>.lora_B` [out, r]; alpha and rank stand in the metadata, and the merged weight is W + alpha / rank * B @ A.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file

from model.llava import LlavaModel
from training.recipes.recipe import PART_NAMES, PartName, PartPlan

_LORA_TARGETS: dict[PartName, str] = {
    "vision_tower": r"vision_tower\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
    "language_model": r"language_model\.model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
}
_LORA_FILES: dict[PartName, str] = {
    "vision_tower": "vision_lora.safetensors",
    "language_model": "language_lora.safetensors",
}
_WHOLE_FILES: dict[PartName, str] = {
    "vision_tower": "vision_tower.safetensors",
    "connector": "connector.safetensors",
    "language_model": "language_model.safetensors",
}


class PartsError(ValueError):
    """A recipe's plan does not fit the model, or trained parts do not fit the plan."""


@dataclass(frozen=True)
class TrainedPart:
    """One part as it will be trained."""

    name: PartName
    plan: PartPlan
    parameters: list[torch.nn.Parameter]

    @property
    def size(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)


def part_of(name: str) -> PartName:
    """The part to which a parameter of `LlavaModel` belongs."""
    if name.startswith("vision_tower."):
        return "vision_tower"
    if name.startswith(("multi_modal_projector.", "image_newline")):
        return "connector"
    if name.startswith("language_model."):
        return "language_model"
    raise PartsError(f"parameter {name} belongs to no part")


def prepare_parts(model: LlavaModel, plans: Mapping[PartName, PartPlan]) -> list[TrainedPart]:
    """Freezes everything, then opens what `plans` names; trained weights become float32."""
    unknown = set(plans) - set(PART_NAMES)
    if unknown:
        raise PartsError(f"unknown parts {sorted(unknown)}: expected {', '.join(PART_NAMES)}")
    model.requires_grad_(False)
    for name, plan in plans.items():
        if plan.lora_rank:
            _inject_lora(model, name, plan)
    trained: dict[PartName, list[torch.nn.Parameter]] = {name: [] for name in plans}
    for key, parameter in model.named_parameters():
        name = part_of(key)
        if name in plans and (bool(plans[name].lora_rank) == (".lora_" in key)):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            trained[name].append(parameter)
    return [TrainedPart(name, plan, trained[name]) for name, plan in plans.items()]


def _inject_lora(model: LlavaModel, name: PartName, plan: PartPlan) -> None:
    if name not in _LORA_TARGETS:
        raise PartsError(f"{name} is trained whole; LoRA is for {' and '.join(_LORA_TARGETS)}")
    config = LoraConfig(r=plan.lora_rank, lora_alpha=plan.lora_alpha, target_modules=_LORA_TARGETS[name])  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # one adapter a part is meant
        inject_adapter_in_model(config, model, adapter_name=name)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter(list(module.lora_A.keys()))
            module.cast_input_dtype_enabled = False  # autocast picks the dtype of each product


def save_parts(model: LlavaModel, plans: Mapping[PartName, PartPlan], folder: Path) -> None:
    """Writes each part's file, in bf16, atomically. Parts that are not in `plans` keep the file they have."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plan in plans.items():
        if plan.lora_rank:
            tensors = {
                _lora_key(key): value
                for key, value in model.named_parameters()
                if f".{name}." in key and ".lora_" in key
            }
            metadata = {"rank": str(plan.lora_rank), "alpha": str(plan.lora_alpha)}
            _write(tensors, folder / _LORA_FILES[name], metadata)
        else:
            tensors = {
                key: value for key, value in model.named_parameters() if part_of(key) == name and ".lora_" not in key
            }
            _write(tensors, folder / _WHOLE_FILES[name], {})


def load_parts(model: LlavaModel, plans: Mapping[PartName, PartPlan], folder: Path) -> list[str]:
    """Puts earlier trained parts into the model; returns the files used.

    A LoRA whose part is trained by LoRA of the same rank goes on training; any other is merged into the weights.
    """
    used = []
    for file in sorted(folder.glob("*.safetensors")):
        name = next((n for n, f in (*_LORA_FILES.items(), *_WHOLE_FILES.items()) if f == file.name), None)
        if name is None:
            raise PartsError(f"{file}: not a file of trained parts")
        with safe_open(file, framework="pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            metadata = stored.metadata() or {}
        if file.name in _WHOLE_FILES.values():
            _assign(dict(model.named_parameters()), tensors, file)
        elif name in plans and plans[name].lora_rank == int(metadata["rank"]):
            _assign(
                {_lora_key(k): v for k, v in model.named_parameters() if f".{name}." in k and ".lora_" in k},
                tensors,
                file,
            )
        else:
            _merge(model, tensors, float(metadata["alpha"]) / float(metadata["rank"]), file)
        used.append(file.name)
    return used


def carry_over(before: Path | None, output: Path) -> None:
    """Trained parts of the stage before that this one leaves as they are belong to this stage's result too."""
    output.mkdir(parents=True, exist_ok=True)
    if before is not None:
        for file in before.glob("*.safetensors"):
            (output / file.name).write_bytes(file.read_bytes())


def _assign(parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    with torch.no_grad():
        for key, value in tensors.items():
            if key not in parameters or parameters[key].shape != value.shape:
                raise PartsError(f"{file}: {key} does not fit the model")
            parameters[key].copy_(value)


def _merge(model: LlavaModel, tensors: Mapping[str, torch.Tensor], scale: float, file: Path) -> None:
    parameters = {re.sub(r"\.base_layer\b", "", key): value for key, value in model.named_parameters()}
    with torch.no_grad():
        for key, a in tensors.items():
            if key.endswith(".lora_A"):
                module = key.removesuffix(".lora_A")
                weight = parameters.get(f"{module}.weight")
                if weight is None:
                    raise PartsError(f"{file}: no Linear named {module}")
                delta = scale * tensors[f"{module}.lora_B"].float() @ a.float()
                weight.copy_(weight.float() + delta)


def _lora_key(name: str) -> str:
    """`x.q_proj.lora_A.language_model.weight` -> `x.q_proj.lora_A`."""
    return re.sub(r"(\.lora_[AB])\..*$", r"\1", name)


def _write(tensors: Mapping[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
    aside = file.with_suffix(".tmp")
    save_file({key: value.detach().bfloat16().contiguous() for key, value in tensors.items()}, aside, metadata=metadata)
    aside.replace(file)


def describe(trained: list[TrainedPart]) -> str:
    """One line a person reads before anything runs."""
    frozen = [name for name in PART_NAMES if name not in {part.name for part in trained}]
    said = [
        f"{part.name}: {part.size / 1e6:.2f} M parameters at {part.plan.learning_rate:g}"
        + (f" (LoRA, rank {part.plan.lora_rank})" if part.plan.lora_rank else " (whole)")
        for part in trained
    ]
    return "trains " + json.dumps(said)[1:-1].replace('"', "") + (f"; frozen: {', '.join(frozen)}" if frozen else "")
