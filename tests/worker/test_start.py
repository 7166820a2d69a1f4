"""Settings, versions, and the process as a whole."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from model.errors import CheckpointError
from model.tiny import make_tiny_checkpoint
from server.protocol.flags import SettingsError
from worker.engine.observer import RequestReport, StepReport
from worker.engine.protocol import EngineLoad
from worker.metrics import WorkerMetrics
from worker.settings import WorkerSettings, read_settings
from worker.version import checkpoint_version

ROOT = Path(__file__).parents[2]


def test_flags_win_over_the_environment_and_both_over_defaults() -> None:
    environment = {
        "TEPHRA_MODEL": "m",
        "TEPHRA_PORT": "1",
        "TEPHRA_API_KEYS": "a, b",
        "TEPHRA_MEDIA_ALLOW_PRIVATE": "yes",
    }
    settings = read_settings(["--port", "2", "--controller", "http://c:8000", "--secret", "s"], environment)
    assert (settings.model, settings.port, settings.api_keys) == ("m", 2, ("a", "b"))
    assert (settings.controller_url, settings.worker_secret) == ("http://c:8000", "s")
    assert settings.media_allow_private and settings.kv_cache_bytes is None
    assert read_settings(["--kv-cache-bytes", "4096"], environment).kv_cache_bytes == 4096


def test_secrets_do_not_show() -> None:
    shown = repr(WorkerSettings(model="m", api_keys=("k3y",), worker_secret="s3cret"))
    assert "k3y" not in shown and "s3cret" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model"),
        (["--model", "m", "--port", "x"], "--port"),
        (["--model", "m", "--port", "70000"], "--port"),
        (["--model", "m", "--threads", "many"], "--threads"),
        (["--model", "m", "--max-images", "-1"], "--max-images"),
        (["--model", "m", "--drain-seconds", "nan"], "--drain-seconds"),
        (["--model", "m", "--dtype", "int4"], "--dtype"),
        (["--model", "m", "--controller", "c:8000"], "--controller-url"),
    ],
)
def test_a_setting_that_cannot_be_is_named(arguments: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_settings(arguments, {})


def test_the_manifest_names_the_version(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"version": "demo-3"}))
    assert checkpoint_version(tmp_path) == "demo-3"
    for broken in ("{", "{}", '{"version": 3}', '{"version": "a\\nb"}'):
        (tmp_path / "manifest.json").write_text(broken)
        with pytest.raises(CheckpointError, match="manifest"):
            checkpoint_version(tmp_path)


def test_without_a_manifest_the_version_changes_with_weights_and_template(tmp_path: Path) -> None:
    first = make_tiny_checkpoint(tmp_path / "a", seed=1)
    same = Path(shutil.copytree(first, tmp_path / "b"))
    other = make_tiny_checkpoint(tmp_path / "c", seed=2)
    assert checkpoint_version(first) == checkpoint_version(same) != checkpoint_version(other)
    (same / "chat_template.jinja").write_text("other")
    assert checkpoint_version(same) != checkpoint_version(first)


STEP = StepReport(
    prefill_tokens=40,
    decode_tokens=2,
    drawn_tokens=3,
    encoded_images=1,
    encoded_tiles=5,
    prefix_queries=100,
    prefix_hits=60,
    image_queries=3,
    image_hits=2,
    preemptions=1,
    failures=0,
    running=4,
    waiting=7,
    kv_usage=0.5,
    seconds=0.02,
    inter_token_seconds=(0.01, 0.02),
)


def test_what_the_engine_reports_shows_under_vllms_names_and_ours() -> None:
    metrics = WorkerMetrics("tiny", "v1")
    metrics.follow_load(lambda: EngineLoad(4, 7, 300, 0.5, 1000))
    metrics.step_finished(STEP)
    metrics.request_finished(RequestReport("stop", 40, 12, 30, 0, 0.1, 0.2, 1.1, 1.3, 0.3, 1.4))
    metrics.request_finished(RequestReport("error", 40, 0, 0, 0, None, None, None, None, None, 0.2))
    text = metrics.render().decode()
    for prefix in ("vllm:", "tephra:"):
        for line in (
            'num_requests_running{model_name="tiny"} 4.0',
            'num_requests_waiting{model_name="tiny"} 7.0',
            'kv_cache_usage_perc{model_name="tiny"} 0.5',
            'num_preemptions_total{model_name="tiny"} 1.0',
            'prompt_tokens_total{model_name="tiny"} 40.0',
            'prefix_cache_queries_total{model_name="tiny"} 100.0',
            'prefix_cache_hits_total{model_name="tiny"} 60.0',
            'mm_cache_queries_total{model_name="tiny"} 3.0',
            'mm_cache_hits_total{model_name="tiny"} 2.0',
            'generation_tokens_total{model_name="tiny"} 3.0',
            'request_success_total{finished_reason="stop",model_name="tiny"} 1.0',
            'inter_token_latency_seconds_count{model_name="tiny"} 2.0',
            'time_to_first_token_seconds_sum{model_name="tiny"} 0.3',
            'request_time_per_output_token_seconds_sum{model_name="tiny"} 0.1',
            'e2e_request_latency_seconds_count{model_name="tiny"} 2.0',
            'request_queue_time_seconds_sum{model_name="tiny"} 0.1',
            'request_generation_tokens_sum{model_name="tiny"} 12.0',
        ):
            assert f"\n{prefix}{line}" in text, prefix + line
    assert 'tephra:version_info{model_name="tiny",version="v1"} 1.0' in text


def test_what_the_engine_has_in_hand_is_read_when_it_is_asked_for() -> None:
    loads = [EngineLoad(4, 7, 300, 0.5, 1000)]
    metrics = WorkerMetrics("tiny", "v1")
    metrics.follow_load(lambda: loads[-1])
    metrics.step_finished(STEP)
    loads.append(EngineLoad(0, 0, 0, 0.0, 1000))  # the last requests were cancelled: no step follows that tells so
    text = metrics.render().decode()
    for prefix in ("vllm:", "tephra:"):
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            assert f'\n{prefix}{name}{{model_name="tiny"}} 0.0' in text


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "worker", "--port", "0", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def process(checkpoint: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    running = start(
        "--model", str(checkpoint), "--served-name", "small", "--kv-cache-bytes", "4000000", "--threads", "1"
    )
    assert running.stdout is not None and running.stderr is not None
    ready = running.stdout.readline()
    match = re.match(r"Tephra worker ready: (http://127\.0\.0\.1:\d+) model=small version=sha256-\w+ ", ready)
    if match is None:
        running.kill()
        raise AssertionError(ready + running.stderr.read())
    yield running, match[1]
    running.kill()
    running.communicate()


def ask(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


async def test_the_openai_sdk_works_against_the_real_engine(
    process: tuple[subprocess.Popen[str], str], props: object
) -> None:
    async with openai.AsyncOpenAI(base_url=process[1] + "/v1", api_key="any", max_retries=0) as client:
        make = client.chat.completions.create
        assert [model.id async for model in client.models.list()] == ["small"]
        content = [props.picture_part(), props.picture_part(format="JPEG"), {"type": "text", "text": "Compare."}]  # type: ignore[attr-defined]
        pictured = {"model": "small", "messages": ask(content), "max_tokens": 12, "seed": 5, "temperature": 1.0}
        first = await make(**pictured)  # type: ignore[call-overload]
        again = await make(**pictured)  # type: ignore[call-overload]
        assert first.choices[0].message.content == again.choices[0].message.content
        assert first.usage.completion_tokens <= 12 and first.usage.prompt_tokens > 32
        text, usage = "", None
        async for chunk in await make(**pictured, stream=True, stream_options={"include_usage": True}):  # type: ignore[call-overload]
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""
            usage = chunk.usage or usage
        assert text == first.choices[0].message.content
        assert usage.completion_tokens == first.usage.completion_tokens
        both = await make(model="small", messages=ask("hi"), n=2, seed=5, max_tokens=12)  # type: ignore[call-overload]
        second = await make(model="small", messages=ask("hi"), seed=6, max_tokens=12)  # type: ignore[call-overload]
        assert both.choices[1].message.content == second.choices[0].message.content
        scored = await make(
            model="small",
            messages=ask("hi"),
            max_tokens=3,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
            extra_body={"ignore_eos": True},
        )  # type: ignore[call-overload]
        for entry in scored.choices[0].logprobs.content:
            assert entry.logprob == entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        raw = await client.completions.create(model="small", prompt="abc", max_tokens=4)
        assert raw.usage is not None and raw.usage.prompt_tokens == 3
        with pytest.raises(openai.NotFoundError):
            await make(model="large", messages=ask("hi"))  # type: ignore[call-overload]
        with pytest.raises(openai.BadRequestError, match="2048 tokens"):
            await make(model="small", messages=ask("long " * 1000))  # type: ignore[call-overload]


async def test_sigterm_lets_the_answer_in_hand_finish_then_the_process_ends(
    process: tuple[subprocess.Popen[str], str],
) -> None:
    running, url = process
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="small",
            messages=ask("go on"),
            stream=True,
            max_tokens=200,
            extra_body={"ignore_eos": True},  # type: ignore[arg-type]
        )
        chunks = aiter(stream)
        await anext(chunks)
        running.send_signal(signal.SIGTERM)
        reasons = [choice.finish_reason async for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == "length"
    assert await asyncio.to_thread(running.wait, 30) == 0


def test_a_port_in_use_is_told_in_one_line(checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        stopped = start("--model", str(checkpoint), "--port", port)
        _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 1
    assert re.fullmatch(
        rf"The worker cannot start: cannot listen on 127\.0\.0\.1:{port}: Address already in use\n", errors
    )


def test_a_missing_model_is_told_in_one_line(tmp_path: Path) -> None:
    stopped = start("--model", str(tmp_path / "nowhere"))
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 1
    assert errors == f"The worker cannot start: {tmp_path / 'nowhere'}: no such checkpoint directory\n"
