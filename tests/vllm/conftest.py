"""vLLM's own server as a reference, in an environment of its own (`make test-vllm` makes it)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from deploy import lifeline

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("TEPHRA_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
START_SECONDS = 900.0  # it compiles on its first start
MODEL = "m"
Both = Callable[[Path, Path], AbstractContextManager[tuple[str, str]]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def vllm_command(checkpoint: Path, port: int) -> list[str]:
    server = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    one_vision = json.loads((checkpoint / "config.json").read_text())["model_type"] == "llava_onevision"
    most = {"image": 2} | ({"video": 0} if one_vision else {})  # it would try a video, of which no LLaVA here knows
    limits = ["--max-model-len", "2048", "--max-num-seqs", "4", "--limit-mm-per-prompt", json.dumps(most)]
    return [*server, "--model", str(checkpoint), "--served-model-name", MODEL, "--dtype", "float32", *limits]


def worker_command(checkpoint: Path, port: int) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return [
        *(sys.executable, "-m", "worker", "--model", str(checkpoint), "--served-name", MODEL),
        *(*where, "--dtype", "float32"),
    ]


@contextmanager
def serving(name: str, command: list[str], port: int, log: Path, **environment: str) -> Iterator[str]:
    """Runs a server until it answers /v1/models, and ends its whole process group; yields its URL."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TEPHRA_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", lifeline.__file__, *command],
            cwd=ROOT,
            env=inherited | environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"{url}/v1/models"):
            told = log.read_text(errors="replace")[-6000:]
            assert process.poll() is None, f"{name} did not start:\n{told}"
            assert time.monotonic() < deadline, f"{name} did not become ready:\n{told}"
            time.sleep(0.5)
        yield url
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="session")
def both() -> Both:
    """A context in which our worker and vLLM serve the same checkpoint as "m", both in float32: their URLs."""
    return _both


@contextmanager
def _both(checkpoint: Path, folder: Path) -> Iterator[tuple[str, str]]:
    ours, theirs = _free_port(), _free_port()
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (
        serving("the worker", worker_command(checkpoint, ours), ours, folder / "worker.log") as worker,
        serving("vLLM", vllm_command(checkpoint, theirs), theirs, folder / "vllm.log", **settings) as vllm,
    ):
        yield worker, vllm


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
