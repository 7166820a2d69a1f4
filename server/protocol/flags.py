"""Flags and `TEPHRA_*` environment names out of a settings dataclass, for every process of the system.

Flags win over the environment, the environment over the defaults. Knows no setting by name.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, field, fields
from typing import Any, TypeVar

_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_KINDS = {bool: "yes or no", int: "a whole number", float: "a number"}

S = TypeVar("S")


class SettingsError(ValueError):
    """A setting cannot be used; the message names it, never its value where that may be a secret."""


def setting(
    default: Any,
    help: str,
    *,
    kind: type | None = None,
    least: float = 0,
    most: float = math.inf,
    secret: bool = False,
    choices: tuple[str, ...] = (),
    short: str | None = None,
) -> Any:
    """A field of a settings dataclass.

    `kind` is the type of a setting whose default is None (str unless said otherwise), `least` and `most` the smallest
    and the largest number, `short` another flag for it. A secret is kept out of `repr`.
    """
    kind = kind or (str if default is None else type(default))
    about = {"help": help, "kind": kind, "least": least, "most": most, "choices": choices, "short": short}
    return field(default=default, repr=not secret, metadata=about)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def environment_name(name: str) -> str:
    return "TEPHRA_" + name.upper()


def check(settings: Any) -> None:
    """Holds every field against its choices and its bounds. Raises SettingsError."""
    for item in fields(settings):
        value, choices = getattr(settings, item.name), item.metadata["choices"]
        if choices and value not in choices:
            raise SettingsError(f"{flag(item.name)}: expected one of {', '.join(choices)}, got {value!r}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            least, most = item.metadata["least"], item.metadata["most"]
            if value < least:
                raise SettingsError(f"{flag(item.name)}: expected at least {least:g}, got {value:g}")
            if value > most:
                raise SettingsError(f"{flag(item.name)}: expected at most {most:g}, got {value:g}")


def bounds_of(item: Field[Any]) -> list[str]:
    """In words; 0 is the least that every number may be."""
    least, most = item.metadata["least"], item.metadata["most"]
    return [f"at least {least:g}"] * (least > 0) + [f"at most {most:g}"] * (most < math.inf)


def read(kind: type[S], arguments: Sequence[str], environment: Mapping[str, str], *, prog: str, about: str) -> S:
    """Settings from the command line and the environment.

    Raises SettingsError; argparse itself ends the process on unknown flags and on --help.
    """
    items = fields(kind)  # type: ignore[arg-type]
    given = vars(_parser(items, prog, about).parse_args(arguments))
    values: dict[str, Any] = {}
    for item in items:
        raw = given[item.name] if given[item.name] is not None else environment.get(environment_name(item.name))
        if raw is not None:
            values[item.name] = _convert(item, raw)
    return kind(**values)


def _parser(items: Sequence[Field[Any]], prog: str, about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=about)
    for item in items:
        shown = "" if item.default in (None, ()) else f"; default {item.default}"
        bounds = "".join(f"; {bound}" for bound in bounds_of(item))
        text = f"{item.metadata['help']} [{environment_name(item.name)}{shown}{bounds}]".replace("%", "%%")
        names = [flag(item.name), *([item.metadata["short"]] if item.metadata["short"] else [])]
        if item.metadata["kind"] is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            metavar = item.name.rpartition("_")[2].upper()
            parser.add_argument(*names, dest=item.name, default=None, help=text, metavar=metavar)
    return parser


def _convert(item: Field[Any], raw: str | bool) -> Any:
    """`raw` in the type of the setting; an empty text is the default. Raises SettingsError without the value."""
    kind: type = item.metadata["kind"]
    if isinstance(raw, bool):
        return raw
    if not raw and item.default is None:
        return None
    try:
        if kind is bool:
            return _TRUTH[raw.lower()]
        if kind is int:
            return int(raw)
        if kind is float:
            number = float(raw)
            if not math.isfinite(number):
                raise ValueError
            return number
    except (KeyError, ValueError):
        told = f"{flag(item.name)} ({environment_name(item.name)})"
        raise SettingsError(f"{told}: expected {_KINDS[kind]}") from None
    if kind is tuple:
        return tuple(part.strip() for part in raw.split(",") if part.strip())
    return raw
