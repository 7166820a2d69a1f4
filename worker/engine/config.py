"""What an operator may set about the native engine, each with a default that suits a small CPU machine."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class EngineConfig:
    """Limits of the native engine. Raises ValueError that names the setting which cannot be."""

    max_running: int = 32  # sequences that hold KV blocks at once
    max_waiting: int = 256  # requests that may wait for their first step; beyond it they are turned away
    max_step_tokens: int = 512  # of one step, decodes and prefill chunks together; a prompt's end may add a quarter
    max_step_tiles: int = 4  # image tiles encoded in one step; a larger image takes several
    block_size: int = 16  # tokens of one KV block
    kv_cache_bytes: int | None = None  # None: a quarter of the free memory, at most 2 GiB
    context_length: int | None = None  # tokens; None: the checkpoint's
    prefix_cache: bool = True  # take up KV blocks whose tokens and images were computed before
    feature_cache_bytes: int = 512 * 2**20  # of image features that no running answer needs; 0 keeps none
    check_blocks: bool = False  # hold the books of blocks and features after every step, for tests and soaks
    cuda_graphs: bool = True  # record decode steps as CUDA graphs; without a GPU of no account
    threads: int | None = None  # of torch, inside the engine; None: torch's own choice

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if (value is None and setting.default is None) or isinstance(setting.default, bool):
                continue
            least = 0 if setting.name == "feature_cache_bytes" else 1
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{setting.name} must be a whole number of at least {least}, got {value!r}")
        if self.max_running > self.max_step_tokens:
            raise ValueError(
                f"max_running {self.max_running} exceeds max_step_tokens {self.max_step_tokens}: "
                "each running answer needs one token of a step"
            )
