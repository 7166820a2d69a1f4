"""Which tensors a configuration calls for, and what is wrong with those that are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from model.checkpoint.tensors import StoredTensor
from model.config import LlavaConfig
from model.errors import CheckpointError
from model.llava import LlavaModel

Shape = tuple[int, ...]

_POST_NORM = "vision_tower.vision_model.post_layernorm"
_SHOWN = 3


def needed_tensors(config: LlavaConfig) -> dict[str, Shape]:
    """Name -> shape of every tensor that the model computes with."""
    with torch.device("meta"):
        return {name: tuple(like.shape) for name, like in LlavaModel(config).state_dict().items()}


def known_tensors(config: LlavaConfig) -> dict[str, Shape]:
    """Those, and what other readers of the layout expect: vision layers behind the feature, and the last norm."""
    whole = needed_tensors(replace(config, feature_layer=-1))
    width = (config.vision.hidden_size,)
    return {**whole, f"{_POST_NORM}.weight": width, f"{_POST_NORM}.bias": width}


def tensor_faults(config: LlavaConfig, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Sentences about missing, unexpected and misshapen tensors; empty when all is well."""
    known = known_tensors(config)
    faults = []
    if missing := sorted(needed_tensors(config).keys() - tensors.keys()):
        faults.append(f"{_some('tensor', missing)} missing: {_list(missing)}")
    if unexpected := sorted(tensors.keys() - known.keys()):
        faults.append(f"{_some('unexpected tensor', unexpected)}: {_list(unexpected)}")
    for name in sorted(tensors.keys() & known.keys()):
        if tensors[name].shape != known[name]:
            found, wanted = list(tensors[name].shape), list(known[name])
            faults.append(f"{tensors[name].file.name}: {name} has shape {found}, config.json makes it {wanted}")
    return faults


def check_tensors(config: LlavaConfig, tensors: Mapping[str, StoredTensor], origin: str) -> None:
    """Raises CheckpointError with the first fault."""
    if faults := tensor_faults(config, tensors):
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise CheckpointError(f"{origin}: {faults[0]}{more}")


def _some(noun: str, names: list[str]) -> str:
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"


def _list(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
