"""Our trained parts: taken from a run, checked by digest, merged into the base as a person would by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deploy.demo.errors import DemoError
from deploy.demo.language_model import LanguageModel
from deploy.demo.merge import CONNECTOR_NAMES, merged_tensors
from deploy.demo.release import release
from deploy.demo.trained_parts import TrainedParts
from deploy.demo.vision_tower import VisionTower

QUERY = "language_model.model.layers.0.self_attn.q_proj"
FC1 = "vision_tower.vision_model.encoder.layers.0.mlp.fc1"
NORM = "language_model.model.norm.weight"


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def base() -> tuple[LanguageModel, VisionTower]:
    language = {f"{QUERY}.weight": numbers(6, 4), NORM: numbers(4, seed=1)}
    vision = {f"{FC1}.weight": numbers(5, 3, seed=2), f"{FC1}.bias": numbers(5, seed=3)}
    return (
        LanguageModel(language, {"hidden_size": 4}, None, {}, 9, (2,)),  # type: ignore[arg-type]  # has no tokenizer
        VisionTower(vision, {"hidden_size": 3}),
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a training run leaves behind."""
    folder = tmp_path / "run"
    folder.mkdir()
    shapes = [(4, 3), (4,), (4, 4), (4,), (4,)]
    connector = {name: numbers(*shape, seed=9) for name, shape in zip(CONNECTOR_NAMES, shapes, strict=True)}
    save_file(connector, folder / "connector.safetensors")
    write_lora(folder, numbers(2, 4, seed=4), numbers(6, 2, seed=5))
    save_file(
        {f"{FC1}.lora_A": numbers(1, 3, seed=6), f"{FC1}.lora_B": numbers(5, 1, seed=7)},
        folder / "vision_lora.safetensors",
        metadata={"alpha": "3", "rank": "1"},
    )
    return folder


def write_lora(folder: Path, a: torch.Tensor, b: torch.Tensor, name: str = QUERY) -> None:
    save_file(
        {f"{name}.lora_A": a, f"{name}.lora_B": b},
        folder / "language_lora.safetensors",
        metadata={"alpha": "8", "rank": "2"},
    )


def released(run: Path, tmp_path: Path) -> TrainedParts:
    return release(run, "demo-instruct", tmp_path / "weights")


def test_a_delta_is_added_as_scale_times_b_times_a(run: Path, tmp_path: Path) -> None:
    language, vision = base()
    merged = merged_tensors(language, vision, released(run, tmp_path))
    query = language.tensors[f"{QUERY}.weight"] + 8 / 2 * numbers(6, 2, seed=5) @ numbers(2, 4, seed=4)
    fc1 = vision.tensors[f"{FC1}.weight"] + 3 / 1 * numbers(5, 1, seed=7) @ numbers(1, 3, seed=6)
    torch.testing.assert_close(merged[f"{QUERY}.weight"].float(), query, rtol=2**-8, atol=0)  # bfloat16's rounding
    torch.testing.assert_close(merged[f"{FC1}.weight"].float(), fc1, rtol=2**-8, atol=0)


def test_what_was_not_trained_stays_as_it_was(run: Path, tmp_path: Path) -> None:
    language, vision = base()
    merged = merged_tensors(language, vision, released(run, tmp_path))
    assert torch.equal(merged[NORM], language.tensors[NORM].bfloat16())
    assert torch.equal(merged[f"{FC1}.bias"], vision.tensors[f"{FC1}.bias"].bfloat16())
    assert set(merged) == {*language.tensors, *vision.tensors, *CONNECTOR_NAMES}
    assert {values.dtype for values in merged.values()} == {torch.bfloat16}


def test_a_whole_tensor_stands_in_for_the_bases_and_takes_the_delta(run: Path, tmp_path: Path) -> None:
    language, vision = base()
    save_file({f"{QUERY}.weight": torch.zeros(6, 4), NORM: torch.ones(4)}, run / "replaced.safetensors")
    merged = merged_tensors(language, vision, released(run, tmp_path))
    assert torch.equal(merged[NORM], torch.ones(4).bfloat16())
    delta = 4 * numbers(6, 2, seed=5) @ numbers(2, 4, seed=4)
    torch.testing.assert_close(merged[f"{QUERY}.weight"].float(), delta, rtol=2**-8, atol=0)


def test_without_trained_parts_the_connector_is_random_and_always_the_same() -> None:
    first, second = (merged_tensors(*base(), None) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert 0 < first["multi_modal_projector.linear_1.weight"].abs().max() < 0.1
    assert first["multi_modal_projector.linear_1.weight"].shape == (4, 3)


def test_a_release_forgets_the_one_before(run: Path, tmp_path: Path) -> None:
    released(run, tmp_path)
    (run / "vision_lora.safetensors").unlink()
    assert set(released(run, tmp_path).digests) == {"connector.safetensors", "language_lora.safetensors"}
    assert not (tmp_path / "weights" / "vision_lora.safetensors").exists()


def test_a_run_without_a_connector_is_not_released(run: Path, tmp_path: Path) -> None:
    (run / "connector.safetensors").unlink()
    with pytest.raises(DemoError, match=r"holds no connector\.safetensors"):
        released(run, tmp_path)


def test_more_than_the_repository_takes_is_not_released(run: Path, tmp_path: Path) -> None:
    save_file({"vision_tower.large": torch.zeros(10_100_000)}, run / "replaced.safetensors")
    with pytest.raises(DemoError, match=r"take 40\.4 MB; at most 40 MB"):
        released(run, tmp_path)


def test_a_changed_file_is_refused(run: Path, tmp_path: Path) -> None:
    parts = released(run, tmp_path)
    file = parts.folder / "connector.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DemoError, match=r"connector\.safetensors has sha256 .* its manifest says"):
        TrainedParts.read(parts.folder)


def test_a_missing_file_is_named(run: Path, tmp_path: Path) -> None:
    parts = released(run, tmp_path)
    (parts.folder / "vision_lora.safetensors").unlink()
    with pytest.raises(DemoError, match=r"vision_lora\.safetensors is missing"):
        TrainedParts.read(parts.folder)


def test_missing_weights_are_said(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="trained parts are missing"):
        TrainedParts.read(tmp_path)


@pytest.mark.parametrize(
    "content", ["{}", "[]", "not json", '{"recipe": "r"}', '{"recipe": "r", "files": {"../x.safetensors": "0"}}']
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DemoError, match=r"manifest\.json"):
        TrainedParts.read(tmp_path)


def test_a_manifest_without_a_connector_cannot_be_merged(run: Path, tmp_path: Path) -> None:
    parts = released(run, tmp_path)
    manifest = parts.folder / "manifest.json"
    stated = json.loads(manifest.read_bytes())
    del stated["files"]["connector.safetensors"]
    manifest.write_text(json.dumps(stated))
    with pytest.raises(DemoError, match="hold no multi_modal_projector"):
        merged_tensors(*base(), TrainedParts.read(parts.folder))


@pytest.mark.parametrize(
    ("a", "b", "name", "said"),
    [
        ((2, 4), (6, 2), "language_model.model.layers.9.mlp.up_proj", "a Linear of that name"),
        ((2, 5), (6, 2), QUERY, "does not fit the weight"),
        ((3, 4), (6, 2), QUERY, "does not fit the weight"),
    ],
)
def test_a_delta_that_does_not_fit_is_refused(
    run: Path, tmp_path: Path, a: tuple[int, int], b: tuple[int, int], name: str, said: str
) -> None:
    write_lora(run, torch.zeros(a), torch.zeros(b), name)
    with pytest.raises(DemoError, match=said):
        merged_tensors(*base(), released(run, tmp_path))


def test_a_delta_without_its_scale_is_refused(run: Path, tmp_path: Path) -> None:
    save_file(
        {f"{QUERY}.lora_A": torch.zeros(2, 4), f"{QUERY}.lora_B": torch.zeros(6, 2)}, run / "language_lora.safetensors"
    )
    with pytest.raises(DemoError, match="alpha and rank"):
        merged_tensors(*base(), released(run, tmp_path))


def test_a_whole_tensor_of_another_shape_or_name_is_refused(run: Path, tmp_path: Path) -> None:
    save_file({NORM: torch.ones(5)}, run / "replaced.safetensors")
    with pytest.raises(DemoError, match=r"is \[5\], the base has \[4\]"):
        merged_tensors(*base(), released(run, tmp_path))
    save_file({"something.else": torch.ones(5)}, run / "replaced.safetensors")
    with pytest.raises(DemoError, match=r"something\.else is no tensor of the demo"):
        merged_tensors(*base(), released(run, tmp_path))
