"""`tephra up` from outside: what it refuses in one line, and a whole system started, disturbed and stopped."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from model.prompts.templates import TEMPLATES
from model.tiny import make_tiny_checkpoint
from server.auth.keys_file import new_key

pytestmark = pytest.mark.timeout(600)  # whole systems start here, perhaps on a machine that has much else to do
LIMIT = 240.0  # seconds after which something that should happen is taken not to happen


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEPHRA_")}
    return {**kept, "XDG_STATE_HOME": str(tmp_path / "state"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def refused(
    tmp_path: Path, *arguments: str, preparation: Callable[[], None] | None = None, cache: Path | None = None
) -> str:
    """Runs `tephra up`, which must end by itself with code 1 and one line; that line."""
    finished = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "up", *arguments],
        env={**environment(tmp_path), **({"TEPHRA_CACHE": str(cache)} if cache else {})},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        preexec_fn=preparation,
    )
    assert finished.returncode == 1, finished.stdout + finished.stderr
    lines = finished.stderr.splitlines()
    assert len(lines) == 1, finished.stderr
    assert finished.stdout == ""
    return lines[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path, checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(tmp_path, "--model", str(checkpoint), "--port", str(port))
    assert line == f"tephra: Cannot listen on 127.0.0.1:{port}: Address already in use. Choose another with --port."


def test_a_missing_model_is_said_in_one_line(tmp_path: Path) -> None:
    line = refused(tmp_path, "--model", str(tmp_path / "nowhere"), "--port", "0")
    assert line == f"tephra: No checkpoint at {tmp_path / 'nowhere'}: expected a folder with config.json, or 'demo'."


def test_a_name_on_a_hub_is_answered_with_how_to_fetch_it(tmp_path: Path) -> None:
    line = refused(tmp_path, "--model", "liuhaotian/llava-v1.5-7b", "--port", "0")
    assert line.endswith("'hf download liuhaotian/llava-v1.5-7b --local-dir FOLDER' brings it.")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
            "{} is in the original layout: 'tephra checkpoint import {} FOLDER' makes a checkpoint that can be served.",
        ),
        ({"model_type": "llama"}, "{} is no LLaVA: its model_type is 'llama', expected llava, llava_next, "),
        ([], "{}/config.json: expected a JSON object."),
        (None, "{}/config.json: cannot be read as JSON"),
        ({"model_type": "llava", "text_config": {}}, "{} holds pickled weights: 'tephra checkpoint import {} FOLDER' "),
    ],
    ids=["original", "no LLaVA", "no object", "no JSON", "pickled"],
)
def test_a_folder_that_cannot_be_served_is_told_before_anything_starts(
    config: object, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{" if config is None else json.dumps(config))
    (folder / "pytorch_model.bin").write_bytes(b"")
    line = refused(tmp_path, "--model", str(folder), "--port", "0")
    assert line.startswith("tephra: " + message.replace("{}", str(folder)))


def test_an_unknown_chat_template_is_told_before_anything_starts(tmp_path: Path, checkpoint: Path) -> None:
    line = refused(tmp_path, "--model", str(checkpoint), "--port", "0", "--chat-template", "vicuna")
    assert line == f"tephra: No chat template 'vicuna': expected one of {', '.join(TEMPLATES)}, or a file."
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    line = refused(tmp_path, "--model", str(checkpoint), "--port", "0", "--chat-template", str(tmp_path / "binary"))
    assert line.startswith(f"tephra: {tmp_path / 'binary'}: cannot be read as UTF-8 text")


def test_a_disk_that_takes_no_more_is_said_in_one_line(tmp_path: Path, checkpoint: Path) -> None:
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    line = refused(tmp_path, "--model", str(checkpoint), "--port", "0", preparation=no_room)
    assert line.startswith(f"tephra: Cannot write logs under {tmp_path / 'state' / 'tephra'}: ")


def test_a_demo_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refused(tmp_path, "--port", "0", cache=tmp_path / "file" / "cache")
    assert line.startswith("tephra: ")
    assert str(tmp_path / "file" / "cache") in line


def test_a_redis_that_does_not_answer_is_said_in_one_line(tmp_path: Path, checkpoint: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}/0"
        line = refused(tmp_path, "--model", str(checkpoint), "--port", "0", "--redis-url", url)
    assert line.startswith("tephra: No answer from the Redis of --redis-url (TEPHRA_REDIS_URL): ")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--workers", "0"), "--workers must be 1 to 64"),
        (("--processes", "65"), "--processes must be 1 to 64"),
        (("--host", "no.such.host.invalid"), "no address of this machine"),
        (("--host", "192.0.2.1", "--port", "0"), "no address of this machine"),
        (("--port", "70000"), "70000 is no port"),
        (("--port", "-1"), "-1 is no port"),
    ],
)
def test_a_setting_that_cannot_be_is_said_in_one_line(
    tmp_path: Path, checkpoint: Path, option: tuple[str, ...], words: str
) -> None:
    assert words in refused(tmp_path, "--model", str(checkpoint), *option)


class Running:
    """A `tephra up` with its output."""

    def __init__(self, tmp_path: Path, *arguments: str, **settings: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "up", "--port", "0", *arguments],
            env={**environment(tmp_path), **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def until(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + LIMIT
        while not (found := re.search(pattern, self.output)):
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.05)
        return found

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker_processes(self) -> list[psutil.Process]:
        """The workers themselves, not the lifelines above them."""
        found = [child for child in self.family() if child.cmdline()[1:4] == ["-P", "-m", "worker"]]
        return sorted(found, key=lambda child: child.pid)

    def ended(self) -> int:
        return self.process.wait(timeout=LIMIT)


def all_gone(family: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(family, timeout=LIMIT)
    return not alive


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def begin(*arguments: str, **settings: str) -> Running:
        started.append(Running(tmp_path, *arguments, **settings))
        return started[-1]

    yield begin
    for running in started:
        family = running.family() if running.process.poll() is None else []
        running.process.kill()
        running.process.wait()
        for child in family:
            if child.is_running():
                child.kill()


def ask(url: str) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=LIMIT) as client:
        while not (models := client.get(f"{url}/models").json()["data"]):
            time.sleep(0.05)  # the process that was asked has not heard of the workers yet
        model = models[0]["id"]
        body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
        return client.post(f"{url}/chat/completions", json=body)


def test_a_system_starts_survives_a_killed_worker_and_stops_on_ctrl_c(
    start: Callable[..., Running], checkpoint: Path
) -> None:
    running = start("--model", str(checkpoint), "--workers", "2", "--processes", "2")
    url = running.until(r"API +(http://\S+/v1)")[1]
    controllers = [child for child in running.family() if child.cmdline()[1:4] == ["-P", "-m", "server"]]
    assert len(controllers) == 3  # the two and their parent
    assert ask(url).json()["usage"]["completion_tokens"] >= 1

    victim = running.worker_processes()[0]
    victim.kill()
    running.until(r"worker-\d was ended by SIGKILL\. .*It is started again in")
    assert ask(url).status_code == 200  # by the other one, while the first is away
    running.until(r"worker-\d: ready(?s:.*)worker-\d: ready(?s:.*)worker-\d: ready")
    with httpx.Client(trust_env=False, timeout=LIMIT) as client:
        workers = client.get(url.removesuffix("v1") + "admin/workers").json()["workers"]
    assert {worker["id"] for worker in workers} == {"worker-1", "worker-2"}  # the names that are shown here

    family = running.family()
    assert len(running.worker_processes()) == 2
    running.process.send_signal(signal.SIGINT)
    assert running.ended() == 0
    assert all_gone(family)


def test_a_system_whose_keys_stand_hashed_in_a_file_starts_like_any_other(
    start: Callable[..., Running], checkpoint: Path, tmp_path: Path
) -> None:
    """The launcher knows none of the keys, and needs none to see that it is up."""
    file = tmp_path / "keys.jsonl"
    key = new_key(file, "acme")
    running = start("--model", str(checkpoint), TEPHRA_KEYS_FILE=str(file))
    url = running.until(r"API +(http://\S+/v1)")[1]
    running.until(f"Model +{checkpoint.name} on 1 worker")
    assert Path(running.until(r"(\S*tephra) chat --url \S+ --api-key YOUR_KEY")[1]).exists()
    with httpx.Client(trust_env=False, timeout=LIMIT) as client:
        assert client.get(f"{url}/models").status_code == 401
        models = client.get(f"{url}/models", headers={"Authorization": f"Bearer {key}"})
    assert [model["id"] for model in models.json()["data"]] == [checkpoint.name]


def test_sigterm_while_it_starts_leaves_nothing_behind(start: Callable[..., Running], checkpoint: Path) -> None:
    running = start("--model", str(checkpoint))
    running.until(r"worker-1: starting")
    family = running.family()
    running.process.send_signal(signal.SIGTERM)
    assert running.ended() == 0
    assert all_gone(family)


def test_a_killed_launcher_leaves_nothing_behind(start: Callable[..., Running], checkpoint: Path) -> None:
    running = start("--model", str(checkpoint))
    running.until("Tephra is ready")
    family = running.family()
    assert len(family) >= 4
    running.process.kill()
    running.ended()
    assert all_gone(family)


def test_a_killed_valkey_is_started_again_and_the_worker_found_again(
    start: Callable[..., Running], checkpoint: Path
) -> None:
    running = start("--model", str(checkpoint))
    url = running.until(r"API +(http://\S+/v1)")[1]
    first = [child for child in running.family() if "valkey-server" in child.name()]
    assert len(first) == 1
    first[0].kill()
    running.until("The embedded Valkey does not answer; starting it again")
    deadline = time.monotonic() + LIMIT
    while not [child for child in running.family() if "valkey-server" in child.name() and child.pid != first[0].pid]:
        assert time.monotonic() < deadline, running.output
        time.sleep(0.05)
    assert ask(url).status_code == 200


def test_a_checkpoint_that_does_not_load_ends_the_start_with_the_reason(
    start: Callable[..., Running], checkpoint: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "llava_next"}))
    running = start("--model", str(broken))
    assert running.ended() == 1
    last = running.lines[-1]
    assert last.startswith("tephra: worker-1 exited with code 1 while it started. Its log ends: ")
    assert "Traceback" not in running.output
