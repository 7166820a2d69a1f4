"""The assembled demo checkpoint: what loads it, what it says, and what happens when two processes want it at once.

The two packages (183 MB) are fetched once into the user's own cache and shared from there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx.utils
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaNextForConditionalGeneration, SiglipVisionConfig, SiglipVisionModel

from deploy.demo.assemble import demo_checkpoint
from deploy.demo.cache import KEPT, default_cache, is_complete, only_writer, published, remove_old
from deploy.demo.errors import DemoError
from deploy.demo.packages import PACKAGES, VISION_PACKAGE, fetch, read_member
from deploy.demo.vision_tower import read_encoder
from model.checkpoint import load_checkpoint

pytestmark = pytest.mark.timeout(900)  # the first run downloads
IMAGE_TOKEN_ID = 49152


@pytest.fixture(scope="module")
def wheels() -> dict[str, Path]:
    """The real packages, by name."""
    cache = default_cache()
    with only_writer(cache, Console(stderr=True)):
        return {package.name: fetch(package, cache / "packages", lambda size: None) for package in PACKAGES}


def cache_with(folder: Path, wheels: dict[str, Path]) -> Path:
    """A cache of its own that holds the packages and nothing else."""
    (folder / "packages").mkdir(parents=True)
    for wheel in wheels.values():
        (folder / "packages" / wheel.name).symlink_to(wheel)
    return folder


@pytest.fixture(scope="module")
def checkpoint(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    cache = cache_with(tmp_path_factory.mktemp("demo") / "cache", wheels)
    yield demo_checkpoint(cache, base_only=True)
    shutil.rmtree(cache)


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Any:
    return AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    model, info = LlavaNextForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info  # nothing missing, unexpected or of another shape
    return model


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_bytes())


def test_transformers_chats_with_it(model: Any, processor: Any) -> None:
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    inputs = processor(text=prompt, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert processor.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert answer[-1] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")  # it knows where to stop


def test_transformers_answers_about_a_picture(model: Any, processor: Any) -> None:
    picture = Image.new("RGB", (300, 200), (200, 30, 30))
    message = {"role": "user", "content": [{"type": "image"}, text("What is this?")]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 5, 3, 112, 112)  # the base view and a canvas of 2 x 2 tiles
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > inputs.input_ids.shape[1]


def test_the_engine_of_tephra_sees_the_same_model(model: Any, processor: Any, checkpoint: Path) -> None:
    ours = load_checkpoint(checkpoint, dtype=torch.float32)
    data = BytesIO()
    Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB").save(data, "PNG")
    prepared = ours.preprocessor.prepare(data.getvalue())
    inputs = processor(images=Image.open(data), text="<image>", return_tensors="pt")
    assert int((inputs.input_ids == IMAGE_TOKEN_ID).sum()) == prepared.layout.tokens
    with torch.no_grad():
        theirs = model.model.get_image_features(inputs.pixel_values, inputs.image_sizes)
        torch.testing.assert_close(ours.model.encode_images([prepared])[0], theirs.pooler_output[0], rtol=0, atol=1e-4)


def test_image_has_one_id_of_its_own_and_the_base_vocabulary_is_undisturbed(processor: Any, checkpoint: Path) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer("a<image>b", add_special_tokens=False).input_ids == [81, IMAGE_TOKEN_ID, 82]
    assert tokenizer.convert_ids_to_tokens(IMAGE_TOKEN_ID - 1) != "<image>"
    config = json.loads((checkpoint / "config.json").read_bytes())
    assert config["image_token_index"] == IMAGE_TOKEN_ID
    assert config["text_config"]["vocab_size"] == 49216  # the next multiple of 64


@pytest.mark.parametrize(
    "written", ["Naïve café — 日本語 🙂", "x = 3\n\n\n1. 1234 apples\tdon't", "  two  spaces ", ""]
)
def test_text_survives_the_tokenizer(processor: Any, written: str) -> None:
    assert processor.tokenizer.decode(processor.tokenizer(written).input_ids) == written


def test_digits_stand_alone_as_the_base_was_trained(processor: Any) -> None:
    tokens = processor.tokenizer.tokenize("in 2024:\n\n12")
    assert tokens == ["in", "Ġ", "2", "0", "2", "4", ":", "ĊĊ", "1", "2"]


def test_the_tokens_beyond_the_base_are_never_likely(model: Any, processor: Any) -> None:
    prompts = ["Write a poem about cats.", "List five fruits.", "def add(a, b):", "Say it in Greek: ζω <filename>"]
    with torch.no_grad():
        for prompt in prompts:
            logits = model(**processor(text=prompt, return_tensors="pt")).logits[0]
            assert logits.softmax(-1)[1:, IMAGE_TOKEN_ID:].sum(-1).max() < 1e-4


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_the_chat_template_puts_the_images_of_a_message_before_its_words(processor: Any) -> None:
    image = {"type": "image"}
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [text("First"), image, text("?")]},
        {"role": "assistant", "content": [text("A cat.")]},
        {"role": "user", "content": [image, image, text("And these?")]},
    ]
    assert processor.apply_chat_template(conversation, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<image>\nFirst?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\n<image>\n<image>\nAnd these?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert processor.apply_chat_template(conversation[1:]).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )


def test_names_are_those_that_vllm_loads(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    assert {".".join(name.split(".")[:2]) for name in tensors} == {
        "vision_tower.vision_model",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
        "image_newline",
        "language_model.model",
    }
    assert {values.dtype for values in tensors.values()} == {torch.bfloat16}


def test_the_manifest_lists_every_file_and_tensor(checkpoint: Path) -> None:
    listed = manifest(checkpoint)
    assert set(listed["files"]) == {file.name for file in checkpoint.iterdir()} - {"manifest.json"}
    assert set(listed["tensors"]) == set(load_file(checkpoint / "model.safetensors"))
    assert set(listed["parts"]) == {"vision_tower", "connector", "language_model"}
    assert listed["version"].startswith("demo-base-")


# The vision tower, against the ONNX graph that it came from.


@pytest.fixture(scope="module")
def onnx_file(wheels: dict[str, Path]) -> bytes:
    return read_member(VISION_PACKAGE, wheels[VISION_PACKAGE.name])


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    draw = np.random.default_rng(0)
    noise = torch.from_numpy(draw.standard_normal((2, 3, 7, 7))).float()
    return torch.nn.functional.interpolate(2 * noise, size=(112, 112), mode="bicubic")


def graph_features(onnx_file: bytes, pixels: torch.Tensor, *, with_cls: bool) -> torch.Tensor:
    """[N, 64, D] after layer 9, by the graph itself; without CLS, the two places where it joins in are taken out."""
    model = onnx.load_model_from_string(onnx_file)
    by_name = {node.name: node for node in model.graph.node}
    if not with_cls:
        for join in ("/backbone/embeddings/Concat_1", "/backbone/embeddings/Concat_6"):
            node = by_name[join]
            patches = node.input[1]
            node.CopyFrom(onnx.helper.make_node("Identity", [patches], list(node.output), name=join))
    output = by_name["/backbone/encoder/layer.9/norm1/Sub"].input[0]  # layers are counted from 0 there
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_param = "side"
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    part = onnx.utils.Extractor(model).extract_model(["input_image"], [output])
    (features,) = ReferenceEvaluator(part).run(None, {"input_image": pixels.numpy()})
    return torch.from_numpy(features)[:, 1 if with_cls else 0 :]


def test_the_encoder_without_cls_is_the_graph_without_cls(onnx_file: bytes, pixels: torch.Tensor) -> None:
    encoder = read_encoder(onnx_file)
    tower = SiglipVisionModel(SiglipVisionConfig(**encoder.vision_config)).eval()
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tower.state_dict()) else ""
    tower.load_state_dict({prefix + name: values for name, values in encoder.tensors.items()})
    with torch.no_grad():
        features = tower(pixels, output_hidden_states=True).hidden_states[9]
    torch.testing.assert_close(features, graph_features(onnx_file, pixels, with_cls=False), rtol=0, atol=1e-4)


def test_what_is_folded_in_for_cls_at_least_halves_the_distance_to_features_with_it(
    onnx_file: bytes, pixels: torch.Tensor, model: Any
) -> None:
    wanted = graph_features(onnx_file, pixels, with_cls=True)
    with torch.no_grad():
        hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    folded = torch.cosine_similarity(hidden[model.config.vision_feature_layer], wanted, dim=-1).mean()
    dropped = torch.cosine_similarity(graph_features(onnx_file, pixels, with_cls=False), wanted, dim=-1).mean()
    assert folded > 0.9
    assert 1 - folded < (1 - dropped) / 2


# Assembly, disturbed.


def start(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.demo", "--base-only"],
        env={**os.environ, "TEPHRA_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_after_a_kill_two_processes_at_once_assemble_it_once_and_alike(
    checkpoint: Path, wheels: dict[str, Path], tmp_path: Path
) -> None:
    cache = cache_with(tmp_path / "cache", wheels)
    killed = start(cache)
    while not list(cache.glob("partial-*")):
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list(cache.glob("demo-*/"))

    processes = [start(cache) for _ in range(2)]
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    paths = {Path(out.strip()) for out, _ in said}
    assert paths == {cache / checkpoint.name}
    assert sorted("waiting for it" in err for _, err in said) == [False, True]
    assert sorted("Assembling" in err for _, err in said) == [False, True]
    assert not list(cache.glob("partial-*"))
    assert manifest(paths.pop()) == manifest(checkpoint)  # byte for byte: it lists a digest of every file
    shutil.rmtree(cache)


def test_a_finished_checkpoint_is_only_found(checkpoint: Path) -> None:
    before = (checkpoint / "model.safetensors").stat().st_mtime_ns
    assert demo_checkpoint(checkpoint.parent, base_only=True) == checkpoint
    assert (checkpoint / "model.safetensors").stat().st_mtime_ns == before


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50_000_000))
    with pytest.raises(DemoError, match=r"needs 786 MB, 50 MB are free; make room or set TEPHRA_CACHE"):
        demo_checkpoint(tmp_path, base_only=True)
    assert [file.name for file in tmp_path.iterdir()] == ["demo.lock"]


def finished(folder: Path) -> Path:
    with published(folder) as partial:
        (partial / "weights").write_bytes(bytes(10))
        (partial / "manifest.json").write_text('{"files": {"weights": {"bytes": 10}}}')
    return folder


def test_a_folder_with_a_short_or_missing_file_does_not_count_as_finished(tmp_path: Path) -> None:
    folder = finished(tmp_path / "demo-1")
    assert is_complete(folder)
    os.truncate(folder / "weights", 9)
    assert not is_complete(folder)
    assert is_complete(finished(folder))  # and is replaced
    (folder / "weights").unlink()
    assert not is_complete(folder)
    assert not is_complete(tmp_path / "nowhere")


def test_what_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), published(tmp_path / "demo-1") as partial:
        (partial / "weights").write_bytes(bytes(10))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_old_checkpoints_are_removed_but_for_the_last_few(tmp_path: Path) -> None:
    for number in range(KEPT + 2):
        os.utime(finished(tmp_path / f"demo-{number}"), (number, number))
    remove_old(tmp_path, "demo-*/")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [f"demo-{n}" for n in range(2, KEPT + 2)]
