"""What an operator may set about the native engine, each with a default that suits a small CPU machine."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class EngineConfig:
    """Limits of the native engine. Raises ValueError that names the setting which cannot be."""

    max_running: int = 32  # sequences that hold KV blocks at once
    max_waiting: int = 256  # requests that may wait for their first step; beyond it they are turned away
    max_step_tokens: int = 512  # tokens of one step, decodes and prefill chunks together
    max_step_tiles: int = 4  # image tiles encoded before one step; an image larger than that goes alone
    block_size: int = 16  # tokens of one KV block
    kv_cache_bytes: int | None = None  # None: a quarter of the free memory, at most 2 GiB
    context_length: int | None = None  # tokens; None: the checkpoint's
    threads: int | None = None  # of torch, inside the engine; None: torch's own choice

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value is None and setting.default is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{setting.name} must be a whole number of at least 1, got {value!r}")
        if self.max_running > self.max_step_tokens:
            raise ValueError(
                f"max_running {self.max_running} exceeds max_step_tokens {self.max_step_tokens}: "
                "each running answer needs one token of a step"
            )
