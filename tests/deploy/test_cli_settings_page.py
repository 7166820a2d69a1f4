"""docs/configuration.md says what the processes can be told: every setting, its default, its meaning and its bound."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from server.protocol.flags import bounds_of
from server.settings import Settings
from worker.settings import WorkerSettings

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
MIB = 2**20


def shown(default: Any) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, int) and default >= MIB and default % MIB == 0:
        return f"{default // MIB} MiB"
    return f"{default:g}" if isinstance(default, float) else str(default)


def row(setting: dataclasses.Field[Any]) -> str:
    choices = f" ({', '.join(setting.metadata['choices'])})" if setting.metadata["choices"] else ""
    bounds = "".join(f"; {bound}" for bound in bounds_of(setting))
    flag, name = setting.name.replace("_", "-"), setting.name.upper()
    return f"| `--{flag}` | `TEPHRA_{name}` | {shown(setting.default)} | {setting.metadata['help']}{choices}{bounds} |"


@pytest.mark.parametrize(("title", "settings"), [("Controller", Settings), ("Worker", WorkerSettings)])
def test_the_page_has_exactly_the_settings_there_are(title: str, settings: type[Any]) -> None:
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    [text] = [part for part in section if part.startswith(f"{title}\n")]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [row(setting) for setting in dataclasses.fields(settings)]
