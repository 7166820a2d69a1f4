"""How fast a checkpoint's weights are loaded, against a plain read of the same files.

    python -m benchmarks.load [CHECKPOINT] [--gigabytes 1] [--rounds 5]

Without a checkpoint one of random shape is made in a temporary folder. Files are in the page cache (each is read once
before), so what is measured is the way from there to the model's tensors. The plain read fills one buffer per file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from model.checkpoint.configuration import checked_config, read_config
from model.checkpoint.expected import known_tensors
from model.checkpoint.load import load_model
from model.checkpoint.tensors import StoredTensor, stored_tensors
from model.checkpoint.weights import write_weights
from model.tiny import make_tiny_checkpoint


def make_checkpoint(folder: Path, gigabytes: float) -> Path:
    """A Llama of width 1024 with as many layers as it takes, in bfloat16, in shards of a quarter."""
    directory = make_tiny_checkpoint(folder / "checkpoint")
    (directory / "model.safetensors").unlink()
    raw = json.loads((directory / "config.json").read_text())
    layers = max(1, round(gigabytes * 1e9 / (2 * (4 * 1024**2 + 3 * 1024 * 4096))))
    raw["text_config"] |= {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": layers}
    raw["text_config"] |= {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64}
    (directory / "config.json").write_text(json.dumps(raw))

    def random(name: str, shape: tuple[int, ...]) -> StoredTensor:
        return StoredTensor(
            directory, name, shape, torch.bfloat16, lambda a, b: torch.randn(b - a, *shape[1:]).bfloat16()
        )

    shapes = known_tensors(checked_config(raw, "config.json"))
    write_weights({n: random(n, shape) for n, shape in shapes.items()}, directory, shard_bytes=int(gigabytes * 2.5e8))
    return directory


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of processors' time: on a busy machine only the second says much."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


def read_plainly(files: list[Path]) -> None:
    for file in files:
        buffer = bytearray(file.stat().st_size)
        with file.open("rb", buffering=0) as stream:
            filled = 0
            while filled < len(buffer):
                filled += stream.readinto(memoryview(buffer)[filled:]) or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = asked.checkpoint or make_checkpoint(Path(scratch), asked.gigabytes)
        stored = stored_tensors(directory)
        files = sorted({tensor.file for tensor in stored.values()})
        size = sum(file.stat().st_size for file in files)
        config, dtype = read_config(directory), next(iter(stored.values())).dtype
        read_plainly(files)
        before = anonymous_bytes()
        model = load_model(directory, config, "cpu", dtype)
        grown = anonymous_bytes() - before
        del model
        plain, ours = [], []
        for _ in range(asked.rounds):  # in turn, so that both meet the same neighbours on the machine
            plain.append(seconds(lambda: read_plainly(files)))
            ours.append(seconds(lambda: load_model(directory, config, "cpu", dtype)))
    for name, times in (("plain read", plain), ("load_model", ours)):
        clock, processors = ([size / 1e9 / spent for spent in kind] for kind in zip(*times, strict=True))
        print(
            f"{name}: {statistics.median(clock):.2f} GB/s median, {max(clock):.2f} best of {asked.rounds}; "
            f"{statistics.median(processors):.2f} GB per second of processor time"
        )
    print(f"{len(files)} files, {size / 1e9:.2f} GB; memory grown by {grown / size:.2f} of that")


if __name__ == "__main__":
    main()
