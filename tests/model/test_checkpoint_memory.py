"""Conversions stream: whatever comes in, the process grows by less than one shard and a tenth of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint.configuration import checked_config
from model.checkpoint.expected import known_tensors
from model.tiny import make_tiny_checkpoint

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[2]
SHARD = 64 << 20
RANK = 64

# Each kind in a process of its own, forked when everything is imported: it has its own high-water mark, in which pages
# of mapped files count too. A small import first brings the libraries' pages in, which a fork leaves behind.
MEASURE = """
import json, os, sys
from pathlib import Path
from model.checkpoint.importing import ImportOptions, plan_import
from model.checkpoint.plan import write_checkpoint

def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

folder = Path(sys.argv[1])
tower = folder / "small" / "tower"
for kind, source, base, delta in json.loads(sys.argv[2]):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, kind
        continue
    small = plan_import(folder / "small" / "original", ImportOptions(vision_tower=tower))
    write_checkpoint(small, folder / f"small-{kind}")
    before = memory("VmRSS")
    options = ImportOptions(base=folder / base if base else None, delta=delta, vision_tower=tower)
    plan = plan_import(folder / source, options)
    write_checkpoint(plan, folder / f"from-{kind}", shard_bytes=int(sys.argv[3]))
    print(json.dumps([kind, memory("VmHWM") - before, plan.weights_bytes]), flush=True)
    os._exit(0)
"""

KINDS = {  # source, base, whether it is a delta
    "safetensors": ("safetensors", None, False),
    "bin": ("bin", None, False),
    "lora": ("lora", "base", False),
    "delta": ("bin", "base", True),
}


def write_shards(folder: Path, shapes: dict[str, tuple[int, ...]], names: Iterable[str], form: str) -> None:
    """Three shards of about `SHARD` bytes, of small equal numbers."""
    stem, suffix, save = {
        "safetensors": ("model", "safetensors", save_file),
        "bin": ("pytorch_model", "bin", torch.save),
    }[form]
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name in sorted(names):
        tensor = torch.full(shapes[name], 0.01, dtype=torch.float16)
        if shards[-1] and sum(held.nbytes for held in shards[-1].values()) + tensor.nbytes > SHARD:
            shards.append({})
        shards[-1][name] = tensor
    assert len(shards) >= 3
    weight_map = {}
    for number, shard in enumerate(shards):
        file = f"{stem}-{number:05d}.{suffix}"
        save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_adapter(
    folder: Path, shapes: dict[str, tuple[int, ...]], adapted: Iterable[str], beside: Iterable[str]
) -> None:
    matrices = {}
    for name in adapted:
        shape = shapes[name]
        if name.endswith("_proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            matrices[f"{module}.lora_A.weight"] = torch.full((RANK, shape[1]), 0.01)
            matrices[f"{module}.lora_B.weight"] = torch.full((shape[0], RANK), 0.01)
    torch.save(matrices, folder / "adapter_model.bin")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    trained = {f"base_model.model.{name}": torch.full(shapes[name], 0.01) for name in beside}
    torch.save(trained, folder / "non_lora_trainables.bin")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, originals: Callable) -> dict[str, tuple[int, int]]:
    """Kind -> bytes by which the process grew, bytes that it wrote."""
    folder = tmp_path_factory.mktemp("memory")
    tiny = make_tiny_checkpoint(folder / "tiny", generation="llava-1.5", dtype=torch.float16)
    small = originals(tiny, folder / "small")
    raw = json.loads((tiny / "config.json").read_text())
    sizes = {"hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128}
    raw["text_config"] |= {**sizes, "num_attention_heads": 16, "num_key_value_heads": 16}
    config = json.loads((small.path / "config.json").read_text()) | raw["text_config"]
    config |= {"model_type": "llava_llama", "vocab_size": 259}
    large = known_tensors(checked_config(raw, "test"))
    shapes = {}
    for ours, (name, like) in zip(load_file(tiny / "model.safetensors"), small.tensors.items(), strict=True):
        rows = like.shape[0] if name.endswith(("embed_tokens.weight", "lm_head.weight")) else large[ours][0]
        shapes[name] = (rows, *large[ours][1:])
    connector = [name for name in shapes if "mm_projector" in name]
    language = [name for name in shapes if "mm_projector" not in name and "vision_tower" not in name]
    for kind in ("safetensors", "bin", "base", "lora"):
        (folder / kind).mkdir()
        (folder / kind / "config.json").write_text(json.dumps(config))
        for file in small.path.glob("tokenizer*"):
            (folder / kind / file.name).write_bytes(file.read_bytes())
    write_shards(folder / "safetensors", shapes, [*language, *connector], "safetensors")
    write_shards(folder / "bin", shapes, [*language, *connector], "bin")
    write_shards(folder / "base", shapes, language, "safetensors")
    write_adapter(folder / "lora", shapes, language, connector)
    kinds = json.dumps([[kind, *what] for kind, what in KINDS.items()])
    finished = subprocess.run(
        [sys.executable, "-c", MEASURE, folder, kinds, str(SHARD)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        check=True,
    )
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    return {kind: (size, written) for kind, size, written in lines}


@pytest.mark.parametrize("kind", KINDS)
def test_an_import_holds_less_than_a_shard_and_a_tenth_in_memory(kind: str, grown: dict[str, tuple[int, int]]) -> None:
    size, written = grown[kind]
    assert written > 3 * SHARD
    assert size < 1.1 * SHARD
