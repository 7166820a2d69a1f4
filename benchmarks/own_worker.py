"""A worker of ours for a measurement: started on a checkpoint with given flags, asked in JSON, its metrics read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.engines import MODEL, Engine, command, environment
from benchmarks.servers import Server, free_port, running
from model.checkpoint.files import read_json
from model.config import LlavaConfig

_FLOAT32 = 4  # bytes
_METRICS_SECONDS = 20.0


@asynccontextmanager
async def own_worker(
    checkpoint: Path, arguments: Iterable[str], log: Path, *, dtype: str, start_seconds: float
) -> AsyncIterator[Server]:
    """A running one, under the name `engines.MODEL`. Raises ServerFailed."""
    engine = Engine("tephra", "tephra", tuple(arguments))
    port = free_port()
    started = command(engine, checkpoint, port, dtype, "")
    async with running("worker", started, environment(engine), f"http://127.0.0.1:{port}", log, start_seconds) as ready:
        yield ready


async def gauges(client: aiohttp.ClientSession, url: str) -> Mapping[str, float]:
    """Every number under `tephra:` by its name without that, summed over labels. Raises aiohttp.ClientError, OSError,
    TimeoutError."""
    async with client.get(f"{url}/metrics", timeout=aiohttp.ClientTimeout(total=_METRICS_SECONDS)) as answer:
        answer.raise_for_status()
        text = await answer.text()
    found: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("tephra:"):
                found[sample.name.removeprefix("tephra:")] += sample.value
    return found


def kv_bytes(checkpoint: Path, tokens: int) -> int:
    """What a KV cache of so many tokens takes in float32; twice as many fit in bfloat16. Raises ModelError."""
    text = LlavaConfig.from_hf(read_json(checkpoint / "config.json")).text
    return 2 * text.layers * text.kv_heads * text.head_dim * _FLOAT32 * tokens


def context_length(checkpoint: Path) -> int:
    """Tokens. Raises ModelError."""
    return LlavaConfig.from_hf(read_json(checkpoint / "config.json")).text.context_length


def chat_body(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def picture_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
