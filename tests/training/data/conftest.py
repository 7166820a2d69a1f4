"""Published formats, small."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _published() -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_data_sets", Path(__file__).with_name("published.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def published(tmp_path: Path) -> dict[str, dict[str, Path]]:
    """Files of each format, by role."""
    made: dict[str, dict[str, Path]] = _published().make(tmp_path / "published")
    return made
