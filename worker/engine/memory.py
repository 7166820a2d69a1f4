"""How many bytes the KV cache may take, and how many blocks that makes."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from model.config import TextConfig
from worker.engine.config import EngineConfig

_DEFAULT_SHARE = 0.25  # of the memory that is free at start
_DEFAULT_CAP = 2 * 2**30  # bytes, on a CPU; an accelerator's memory has no other use


def block_bytes(text: TextConfig, block_size: int, dtype: torch.dtype) -> int:
    """Keys and values of one block in all layers."""
    return 2 * text.layers * block_size * text.kv_heads * text.head_dim * dtype.itemsize


def block_count(config: EngineConfig, text: TextConfig, dtype: torch.dtype, device: torch.device) -> int:
    """As many blocks as the budget buys, but no more than `max_running` sequences of full context can fill.

    Raises ValueError if the budget is too small for one block.
    """
    budget = config.kv_cache_bytes
    if budget is None:
        budget = int(_DEFAULT_SHARE * free_bytes(device))
        if device.type == "cpu":
            budget = min(budget, _DEFAULT_CAP)
    price = block_bytes(text, config.block_size, dtype)
    context = min(text.context_length, config.context_length or text.context_length)
    affordable, useful = budget // price, config.max_running * -(-context // config.block_size)
    if not affordable:
        raise ValueError(f"a KV cache of {budget} bytes holds no block: one takes {price}; raise kv_cache_bytes")
    return min(affordable, useful)


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken on the device now; on the CPU a container's limit counts too."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [_machine_free()]
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text()
        used = Path("/sys/fs/cgroup/memory.current").read_text()
        limits.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass  # no such control group, or "max": no limit of its own
    return max(0, min(limits))


def _machine_free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
