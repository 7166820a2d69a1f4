"""What is kept apart from the base that it was trained on: a LoRA adapter, or a delta of every weight.

Takes and gives tensors under the names used here. Nothing is read but headers until the result is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model.checkpoint.derived import with_delta, with_lora
from model.checkpoint.files import member, read_json
from model.checkpoint.names import EMBEDDING, LM_HEAD, from_non_lora, from_original, part_of
from model.checkpoint.tensors import StoredTensor, gathered, tensors_of
from model.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
NON_LORA = "non_lora_trainables.bin"
PROJECTOR = "mm_projector.bin"

Tensors = dict[str, StoredTensor]


def projector(directory: Path) -> Tensors:
    """`mm_projector.bin`: what stage 1 trained."""
    return gathered(directory, [member(directory, PROJECTOR)], frozenset(), from_non_lora)


def lora_on(base: Mapping[str, StoredTensor], directory: Path) -> Tensors:
    """The base with the adapter merged in, and with whatever was trained whole beside it."""
    config = read_json(directory / ADAPTER_CONFIG)
    factor = _factor(config, directory / ADAPTER_CONFIG)
    merged = dict(base)
    for module, (a, b) in lora_pairs(directory).items():
        if module not in merged:
            raise CheckpointError(f"{a.file}: adapts {module}, which the base does not have")
        merged[module] = with_lora(merged[module], a, b, factor(a.shape[0]))
    return merged | trained_beside(directory)


def trained_beside(directory: Path) -> Tensors:
    """What was trained whole beside an adapter: the connector, mostly."""
    if not (directory / NON_LORA).exists():
        return {}
    return gathered(directory, [member(directory, NON_LORA)], frozenset(), from_non_lora)


def delta_on(base: Mapping[str, StoredTensor], delta: Mapping[str, StoredTensor]) -> Tensors:
    """base + delta, where the base has the tensor; the connector and the vision tower are whole in the delta."""
    result: Tensors = {}
    for name, tensor in delta.items():
        if name in base and part_of(name) == "language_model":
            if base[name].shape != tensor.shape and name not in (EMBEDDING, LM_HEAD):
                raise CheckpointError(
                    f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)}, the base {list(base[name].shape)}; "
                    "is this its base?"
                )
            result[name] = with_delta(tensor, base[name])
        elif part_of(name) == "language_model":
            raise CheckpointError(f"{tensor.file}: the base has no {name} to add {tensor.name} to")
        else:
            result[name] = tensor
    if lost := sorted(base.keys() - result.keys()):
        raise CheckpointError(f"the delta lacks {lost[0]}, which the base has ({len(lost)} so); is this its base?")
    return result


def lora_pairs(directory: Path) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """Name of the weight -> its A and B."""
    name = "adapter_model.safetensors" if (directory / "adapter_model.safetensors").exists() else "adapter_model.bin"
    halves: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors_of(member(directory, name)):
        module, found, half = tensor.name.removeprefix("base_model.model.").rpartition(".lora_")
        if not found or half not in ("A.weight", "B.weight"):
            raise CheckpointError(f"{tensor.file}: {tensor.name} is no LoRA matrix; other adapters are not supported")
        halves.setdefault(str(from_original(f"{module}.weight")), {})[half[0]] = tensor
    for module, pair in halves.items():
        if len(pair) != 2 or any(len(m.shape) != 2 or not all(m.shape) for m in pair.values()):
            raise CheckpointError(f"{directory / name}: {module} has not one A and one B matrix")
    if not halves:
        raise CheckpointError(f"{directory / name}: holds no LoRA matrices")
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


def _factor(config: Mapping[str, Any], file: Path) -> Callable[[int], float]:
    """rank -> by how much b @ a is scaled."""
    if config.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{file}: peft_type {config.get('peft_type')!r}: only LORA can be merged")
    for field in (
        "use_dora",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "layer_replication",
    ):
        if config.get(field):
            raise CheckpointError(f"{file}: {field} is not supported")
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{file}: bias {config.get('bias')!r}: expected none")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise CheckpointError(f"{file}: lora_alpha {alpha!r}: expected a number")
    return lambda rank: alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
