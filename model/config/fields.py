"""Reading single fields of a config.json: errors name the section and the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.errors import CheckpointError


def section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of config.json that must be there."""
    found = raw.get(name)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"config.json has no {name}")
    return found


def positive(values: Mapping[str, Any], where: str, name: str) -> int:
    """A positive whole number that fits 31 bits."""
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise CheckpointError(f"{where}.{name}: expected a positive whole number, got {value!r}")
    return value


def one_of(values: Mapping[str, Any], where: str, name: str, choices: Sequence[str], default: str) -> Any:
    """One of a few words; `default` where the field is left out."""
    value = values.get(name, default)
    if value not in choices:
        raise CheckpointError(f"{where}.{name}: expected {' or '.join(choices)}, got {value!r}")
    return value
