"""docs/security.md names a test for each attack: each of them must be there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_names_is_there() -> None:
    rows = [line for line in (ROOT / "docs" / "security.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    named = 0
    for row in rows[1:]:
        held = row.rstrip("| ").rpartition(" | ")[2]
        for entry in held.split("; "):
            file, *names = re.findall(r"`([^`]+)`", entry)
            tree = ast.parse((ROOT / file).read_text("utf-8"))
            tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert names and set(names) <= tests, (file, set(names) - tests)
            named += len(names)
    assert len(rows) == 15
    assert named >= 25
