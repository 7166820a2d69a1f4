"""Nothing that comes in from outside is turned into code: held over the source of everything that serves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVING = ("server", "worker", "model", "deploy")
FILES = sorted(file for folder in SERVING for file in (ROOT / folder).rglob("*.py"))
# Modules that run code out of data, or send objects between processes by pickling them.
SHUT = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "multiprocessing"}
# The one that tells what a pickle holds without running it: it imports the module for its exception alone.
READS_PICKLES = ROOT / "model" / "checkpoint" / "pickles.py"


def calls(tree: ast.AST) -> list[tuple[str, dict[str, ast.expr]]]:
    """The name of what is called, and what it is given by name."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), {word.arg: word.value for word in node.keywords if word.arg}))
    return found


def imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def faults(source: str, *, may_import: frozenset[str] = frozenset()) -> list[str]:
    tree = ast.parse(source)
    found = [f"imports {name}" for name in sorted(imports(tree) & SHUT - may_import)]
    for name, words in calls(tree):
        given = {word: ast.unparse(value) for word, value in words.items()}
        if name in ("eval", "exec", "compile", "__import__") or name.startswith("pickle."):
            found.append(f"calls {name}")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append("calls torch.load without weights_only=True")
        if name.endswith("from_pretrained") and given.get("trust_remote_code") != "False":
            found.append(f"{name} without trust_remote_code=False")
        if given.get("trust_remote_code", "False") != "False" or given.get("allow_pickle", "False") != "False":
            found.append(f"{name} runs what it loads")
        if name in ("yaml.load", "yaml.unsafe_load", "numpy.load", "np.load", "importlib.import_module"):
            found.append(f"calls {name}")
        if name.endswith("Environment") and "Sandboxed" not in name:
            found.append(f"{name} is no sandbox")
        if given.get("shell") == "True" or name in ("os.system", "os.popen"):
            found.append(f"{name} starts a shell")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_part_of_the_serving_turns_data_into_code(file: Path) -> None:
    may_import = frozenset({"pickle"}) if file == READS_PICKLES else frozenset[str]()
    assert faults(file.read_text("utf-8"), may_import=may_import) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from multiprocessing.connection import Client",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "numpy.load(file, allow_pickle=True)",
        "eval(text)",
        "jinja2.Environment()",
        "subprocess.run(line, shell=True)",
    ],
)
def test_the_check_sees_what_it_is_for(line: str) -> None:
    assert faults(line) != []
