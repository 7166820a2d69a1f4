"""`tephra checkpoint`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
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
    assert "original layout" in tephra("inspect", tmp_path / "out").stderr
