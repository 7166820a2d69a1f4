"""`tephra checkpoint`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from model.generations import GENERATIONS
from model.prompts.templates import TEMPLATES
from model.tiny import make_tiny_checkpoint

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", generation="llava-next-2024-05")


def tephra(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])


def test_import_says_what_it_read_and_how_to_serve_it(tiny: Path, tmp_path: Path) -> None:
    result = tephra("import", tiny, tmp_path / "ours", "--dtype", "bfloat16", "--template", "qwen_1_5")
    assert result.exit_code == 0, result.output
    assert "Hugging Face (llava_onevision)" in result.output
    assert f"tephra up --model {tmp_path / 'ours'}" in result.output
    for settled in ("llava-next-2024-05", "36 canvases", "qwen_1_5", "bfloat16"):
        assert settled in result.output
    told = json.loads(tephra("inspect", "--json", tmp_path / "ours").stdout)
    assert (told["generation"], told["template"]) == ("llava-next-2024-05", "qwen_1_5")
    assert {part["dtype"] for part in told["parts"]} == {"bfloat16"}


def test_inspect_shows_every_part(tiny: Path) -> None:
    result = tephra("inspect", tiny)
    assert result.exit_code == 0
    for word in (
        "llava-next-2024-05",
        "vision_tower",
        "connector",
        "language_model",
        "float32",
        "anyres",
        "parameters",
    ):
        assert word in result.stdout


def test_verify_leaves_with_one_when_anything_is_wrong(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    assert tephra("export", tiny, broken, "--template", "qwen_1_5").exit_code == 0
    sound = tephra("verify", broken, "--json")
    assert (sound.exit_code, json.loads(sound.stdout)["sound"]) == (0, True)
    (broken / "model.safetensors").write_bytes(b"")
    wrong = tephra("verify", broken)
    assert wrong.exit_code == 1
    assert "not a readable safetensors file" in wrong.stdout


def test_an_error_is_one_line_on_standard_error(tmp_path: Path) -> None:
    result = tephra("import", tmp_path / "nowhere", tmp_path / "target")
    assert result.exit_code == 1
    assert result.stderr.strip() == f"tephra: {tmp_path / 'nowhere'}: no such checkpoint directory"


def test_export_to_the_original_layout(tiny: Path, tmp_path: Path) -> None:
    assert tephra("export", tiny, tmp_path / "out", "--to", "original", "--tower", "somebody/siglip").exit_code == 0
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (raw["model_type"], raw["mm_vision_tower"]) == ("llava_qwen", "somebody/siglip")
    assert raw["image_aspect_ratio"] == "anyres_max_9"
    told = tephra("inspect", tmp_path / "out")
    assert told.exit_code == 0
    assert "original (llava_qwen): whole weights" in told.stdout


def test_an_original_is_inspected_and_imported_with_the_command_that_inspect_prints(tiny: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    assert tephra("export", tiny, original, "--to", "original", "--tower", "somebody/siglip").exit_code == 0
    told = json.loads(tephra("inspect", "--json", original).stdout)
    assert told["generation"] == "llava-next-2024-05"
    assert told["missing"] == ["the sizes of the vision tower somebody/siglip (--vision-tower)"]
    command = told["command"].replace("TARGET", str(tmp_path / "ours")).replace("FOLDER", str(tiny))
    assert command in tephra("inspect", original).stdout.replace("TARGET", str(tmp_path / "ours")).replace(
        "FOLDER", str(tiny)
    )
    assert tephra(*command.removeprefix("tephra checkpoint ").split()).exit_code == 0
    parts = {name: told["parts"] for name, told in ((n, summary(n)) for n in (tiny, tmp_path / "ours"))}
    assert [part["parameters"] for part in parts[tiny]] == [part["parameters"] for part in parts[tmp_path / "ours"]]


def summary(checkpoint: Path) -> dict:
    return json.loads(tephra("inspect", "--json", checkpoint).stdout)


def test_what_takes_our_layout_only_says_how_to_get_there(tiny: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    assert tephra("export", tiny, original, "--to", "original").exit_code == 0
    advice = f"'tephra checkpoint import {original} FOLDER' brings it into ours"
    refused = tephra("export", original, tmp_path / "target")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert advice in refused.stderr
    wrong = tephra("verify", original)
    assert wrong.exit_code == 1
    assert advice in wrong.stdout


def test_help_lists_every_generation_and_every_template() -> None:
    words = " ".join(CliRunner(env={"COLUMNS": "400"}).invoke(app, ["checkpoint", "import", "--help"]).output.split())
    for name in (*GENERATIONS, *TEMPLATES):
        assert name in words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_stops_an_import_finds_nothing_half(
    number: signal.Signals, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        assert [path.name[:16] for path in tmp_path.iterdir()] == [".target.partial-"]
        signal.raise_signal(number)

    monkeypatch.setattr("model.checkpoint.plan.write_weights", stopped)
    result = tephra("import", tiny, tmp_path / "target")
    assert (result.exit_code, result.stderr) == (130, "tephra: interrupted; nothing was kept\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        lambda f: (f / "config.json").write_text("{" * 10**5),
        lambda f: (f / "tokenizer.json").write_text("{}"),
        lambda f: (f / "chat_template.jinja").write_text("{% for %}"),
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}'),
        lambda f: (f / "preprocessor_config.json").write_text('{"image_mean": "grey"}'),
    ],
    ids=["weights cut short", "config", "tokenizer", "template", "index", "preprocessor"],
)
def test_a_damaged_checkpoint_is_one_line_and_nothing_is_left(damage: Callable, tiny: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    damage(broken)
    for arguments in (("import", broken, tmp_path / "target"), ("export", broken, tmp_path / "target")):
        result = tephra(*arguments)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("tephra: ") and result.stderr.count("\n") == 1, result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["broken"]
