"""docs/observability.md names each metric of a worker, and no other; vLLM's names are among them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"
VLLM = {  # what existing dashboards ask for
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total"),
    *("prefix_cache_queries_total", "prefix_cache_hits_total", "mm_cache_queries_total", "mm_cache_hits_total"),
    *("prompt_tokens_total", "generation_tokens_total", "request_success_total"),
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds"),
    *("e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"),
    *("request_decode_time_seconds", "request_inference_time_seconds"),
    *("request_prompt_tokens", "request_generation_tokens"),
}


def documented(section: str) -> set[str]:
    text = DOCUMENT.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([a-z0-9_:]+)(?:\{[a-z_,]+\})?` \|", text, re.MULTILINE))


async def test_the_document_names_what_a_worker_exposes(random_worker: Any) -> None:
    assert (await random_worker.chat(max_tokens=3)).status_code == 200
    text = (await random_worker.client.get("/metrics")).text
    lines = re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE)
    names = {name + ("_total" if kind == "counter" and not name.endswith("_total") else "") for name, kind in lines}
    names = {name for name in names if not name.endswith("_created")}
    ours = {name.removeprefix("tephra:") for name in names if name.startswith("tephra:")}
    theirs = {name.removeprefix("vllm:") for name in names if name.startswith("vllm:")}
    assert theirs == VLLM  # the same under both prefixes, and nothing of ours under vLLM's
    assert ours > theirs
    assert documented("Metrics of a worker") == {f"vllm:{name}" for name in theirs} | {
        f"tephra:{name}" for name in ours - theirs
    }
