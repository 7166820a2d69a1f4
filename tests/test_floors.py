"""The house keeps its floors: imports run downward only, in no circles, and the controller runs without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each package may use besides itself; a module named here stands for all below it.
MAY_USE = {
    "model": (),
    "worker": ("model", "server.protocol", "server.media"),
    "server": ("model.errors", "model.geometry", "model.image_file"),
    "training": ("model",),
    "benchmarks": ("model", "server.sse", "deploy.supervisor", "worker.engine", "worker.start"),
    "deploy": ("model", "server", "training", "worker", "benchmarks"),
}


def module_name(file: Path) -> str:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for package in MAY_USE for file in sorted((ROOT / package).rglob("*.py"))}


def used_modules(name: str, file: Path) -> Iterator[str]:
    """Every module of ours that a file imports, anywhere in it."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            candidates = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        else:
            continue
        yield from (candidate for candidate in candidates if candidate.split(".")[0] in MAY_USE)


GRAPH = {name: sorted({used for used in used_modules(name, file) if used != name}) for name, file in MODULES.items()}


def test_every_import_of_our_own_names_a_module_that_exists() -> None:
    missing = [f"{name} imports {used}" for name, uses in GRAPH.items() for used in uses if used not in MODULES]
    assert missing == []


@pytest.mark.parametrize("package", MAY_USE)
def test_imports_run_downward_only(package: str) -> None:
    allowed = (package, *MAY_USE[package])
    upward = [
        f"{name} imports {used}"
        for name, uses in GRAPH.items()
        for used in uses
        if name.split(".")[0] == package and not any(used == floor or used.startswith(floor + ".") for floor in allowed)
    ]
    assert upward == []


def test_no_module_imports_itself_through_others() -> None:
    done: set[str] = set()

    def circle(name: str, path: tuple[str, ...]) -> tuple[str, ...]:
        if name in path:
            return (*path[path.index(name) :], name)
        if name in done:
            return ()
        for used in GRAPH.get(name, ()):
            if found := circle(used, (*path, name)):
                return found
        done.add(name)
        return ()

    found = {frozenset(names): " -> ".join(names) for name in GRAPH if (names := circle(name, ()))}
    assert list(found.values()) == []


def test_the_controller_runs_without_torch() -> None:
    names = [name for name in MODULES if name.split(".")[0] == "server" and not name.endswith("__main__")]
    assert heavy_after(names) == "[]"


def test_the_command_line_starts_without_torch() -> None:
    assert heavy_after(["deploy.cli", "deploy.chat", "deploy.launcher"]) == "[]"


def heavy_after(names: list[str]) -> str:
    program = (
        f"import importlib, sys; [importlib.import_module(name) for name in {names!r}]; "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()
