"""The system as its operators run it, for tests that look from outside: a controller and workers as real processes.

Workers serve a tiny checkpoint with random weights. Every process runs under `deploy.lifeline`, so that none outlives
the tests, however these end. Machines that run tests may be slow and busy: whatever must come is waited for.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from PIL import Image

from deploy import lifeline

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROOT = Path(__file__).parent.parent
PATIENCE = 240.0  # seconds after which what must come is taken not to come
STOP_SECONDS = 15.0
MODEL = "tiny"
KEY = "a-clients-key"
SECRET = "the-workers-secret"
# By the names of `server.settings` and `worker.settings`; a worker's may depend on its name. `environment`: more of it.
Settings = Mapping[str, object]
_READY = re.compile(r"^Tephra \w+ ready(?: at|:) (http://\S+)", re.MULTILINE)


def until(condition: Callable[[], Any], what: str) -> Any:
    """Waits for `condition` and returns what it returned; fails after a long while."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, f"it did not happen: {what}"
        time.sleep(0.05)
    return result


class Process:
    """`python -m module`, which can be lost and started again."""

    def __init__(self, name: str, module: str, folder: Path, settings: Settings) -> None:
        self.name = name
        self.url = ""
        self._module = module
        self._folder = folder
        given = dict(settings)
        environment: Mapping[str, str] = given.pop("environment", {})  # type: ignore[assignment]
        self._settings = {f"TEPHRA_{key.upper()}": str(value) for key, value in given.items()} | dict(environment)
        self._starts = 0
        self._asked = False
        self._lifeline: subprocess.Popen[bytes] | None = None
        self._process: psutil.Process | None = None

    def start(self, port: int = 0) -> None:
        """Does not wait until it is ready."""
        assert not self.running
        self._starts += 1
        self._asked = False
        command = [sys.executable, "-m", self._module, "--port", str(port)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TEPHRA_")}
        with self._log.open("wb") as log:
            self._lifeline = subprocess.Popen(
                [sys.executable, "-I", "-S", lifeline.__file__, *command],
                cwd=ROOT,
                env=inherited | {"OMP_NUM_THREADS": "1"} | self._settings,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self._lifeline is not None
            assert self._lifeline.poll() is None, f"{self.name} did not start:\n{self.log[-4000:]}"
            return bool(_READY.search(self.log))

        until(ready, f"{self.name} becomes ready")
        match = _READY.search(self.log)
        assert match is not None and self._lifeline is not None
        self.url = match[1]
        (self._process,) = psutil.Process(self._lifeline.pid).children()

    @property
    def reached_at(self) -> str:
        """Where a controller is told to find it."""
        return self._settings.get("TEPHRA_WORKER_URL", self.url)

    @property
    def running(self) -> bool:
        return self._lifeline is not None and self._lifeline.poll() is None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds."""
        assert self._process is not None
        return int(self._process.memory_info().rss)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def _log(self) -> Path:
        return self._folder / f"{self.name}-{self._starts}.log"

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: it cannot say farewell."""
        self.signal(signal.SIGKILL)
        self._wait()

    def ask_to_stop(self) -> None:
        """Once: a second SIGTERM would end it in the middle of its work."""
        if self.running and self._process is not None and not self._asked:
            self._asked = True
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()

    def stop(self) -> None:
        """In good order where it can, else by force."""
        if not self.running:
            return
        self.ask_to_stop()
        assert self._lifeline is not None
        try:
            self._wait()
        except subprocess.TimeoutExpired:
            os.killpg(self._lifeline.pid, signal.SIGKILL)
            self._lifeline.wait()

    def _wait(self) -> None:
        assert self._lifeline is not None and self._lifeline.stdin is not None
        self._lifeline.wait(STOP_SECONDS if self._process is not None else 0)
        self._lifeline.stdin.close()


class System:
    """A controller and its workers, and what an operator sees of them."""

    def __init__(self, controller: Process, workers: list[Process], admin_key: str) -> None:
        self.controller = controller
        self.admin_key = admin_key
        self.workers = {worker.name: worker for worker in workers}
        self.model = MODEL
        self.key = KEY
        self.secret = SECRET

    @property
    def url(self) -> str:
        return self.controller.url

    def get(self, path: str) -> Any:
        """JSON, or the status of an error. As an operator, where there is an admin key."""
        headers = {"Authorization": f"Bearer {self.admin_key}"} if self.admin_key else {}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, headers=headers), timeout=30
            ) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            return error.code

    def members(self) -> dict[str, dict[str, Any]]:
        """The registry's workers as the controller sees them."""
        return {worker["id"]: worker for worker in self.get("/admin/workers")["workers"]}

    def recent(self) -> dict[str, dict[str, Any]]:
        """The last requests by their ids."""
        return {record["id"]: record for record in self.get("/admin/stats")["recent"]}

    def gauge(self, worker: str, name: str) -> float:
        """A number from the worker's own /metrics."""
        with urllib.request.urlopen(self.workers[worker].url + "/metrics", timeout=30) as response:
            text = response.read().decode()
        match = re.search(rf'^vllm:{name}{{model_name="{MODEL}"}} (\S+)$', text, re.MULTILINE)
        assert match is not None, name
        return float(match[1])

    def metric(self, name: str) -> float:
        """The sum of the controller's samples of this name, labels or not."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as response:
            text = response.read().decode()
        return sum(map(float, re.findall(rf"^tephra_controller_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))

    def idle(self) -> bool:
        """No worker has anything in hand."""
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return not any(self.gauge(worker, name) for worker in self.workers for name in names)

    def restore(self) -> None:
        """Starts again what was lost, wakes what sleeps."""
        processes = (self.controller, *self.workers.values())
        for process in processes:
            if process.running:
                process.signal(signal.SIGCONT)
            else:
                process.start(process.port)
        for process in processes:
            process.wait_ready()

    def wait_whole(self) -> None:
        """Until every worker is a healthy member that new requests are sent to."""

        def whole() -> bool:
            members = self.members()
            return all(
                name in members
                and members[name]["url"] == worker.reached_at
                and members[name]["state"] in ("joining", "healthy", "slow_start")
                for name, worker in self.workers.items()
            )

        until(whole, "all workers have joined")


class Pictures:
    """Pictures that differ by their number."""

    @staticmethod
    def draw(number: int) -> Image.Image:
        """Stripes of random colours in one of five sizes."""
        colours = random.Random(number)
        picture = Image.new("RGB", ((48, 40), (90, 44), (44, 100), (160, 50), (110, 110))[number % 5])
        for left in range(0, picture.width, 8):
            picture.paste(tuple(colours.randbytes(3)), (left, 0, left + 8, picture.height))
        return picture

    def file(self, number: int, kind: str = "PNG", **options: Any) -> bytes:
        stream = io.BytesIO()
        self.draw(number).save(stream, kind, **options)
        return stream.getvalue()

    def data_url(self, number: int, kind: str = "PNG", **options: Any) -> str:
        return f"data:image/{kind.lower()};base64,{base64.b64encode(self.file(number, kind, **options)).decode()}"

    def part(self, number: int, kind: str = "PNG", **options: Any) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": self.data_url(number, kind, **options)}}

    @staticmethod
    def large_part(number: int) -> dict[str, Any]:
        """400 by 300 pixels of noise, which no format makes smaller: 360 kB."""
        stream = io.BytesIO()
        Image.frombytes("RGB", (400, 300), random.Random(number).randbytes(360_000)).save(stream, "BMP")
        url = f"data:image/bmp;base64,{base64.b64encode(stream.getvalue()).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}


RunningSystem = Callable[[Settings, Settings], AbstractContextManager[System]]


@contextmanager
def _running(
    folder: Path, checkpoint: Path, controller_settings: Settings, worker_settings: Settings
) -> Iterator[System]:
    with ExitStack() as stack:
        shared = {"worker_secret": SECRET}
        controller = Process("controller", "server", folder, {**shared, "api_keys": KEY, **controller_settings})
        stack.callback(controller.stop)
        controller.start()
        controller.wait_ready()
        workers = []
        for name in ("east", "west"):
            settings = {
                "model": checkpoint,
                "served_name": MODEL,
                "worker_id": name,
                "controller_url": controller.url,
                "threads": 1,
                "dtype": "float32",  # in which an answer never depends on its batch
                "kv_cache_bytes": 50_000_000,
            }
            own = {key: value(name) if callable(value) else value for key, value in worker_settings.items()}
            worker = Process(name, "worker", folder, {**shared, **settings, **own})
            stack.callback(worker.stop)
            worker.start()
            workers.append(worker)
        for worker in workers:
            worker.wait_ready()
        system = System(controller, workers, str(controller_settings.get("admin_key", "")))
        try:
            system.wait_whole()
            yield system
        finally:
            for process in (*workers, controller):  # all at once, then one after the other is waited for
                process.ask_to_stop()


@pytest.fixture(scope="session")
def running_system(tmp_path_factory: pytest.TempPathFactory) -> RunningSystem:
    """A context in which a controller and two workers run, with these settings of theirs."""
    from model.tiny import make_tiny_checkpoint  # torch: only for tests that need it

    checkpoint = make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / MODEL)
    return lambda controller, workers: _running(tmp_path_factory.mktemp("system"), checkpoint, controller, workers)


@pytest.fixture
def lone_controller(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts a controller without any worker; takes its settings."""
    with ExitStack() as stack:

        def start(**settings: object) -> Process:
            controller = Process("lone-controller", "server", tmp_path, settings)
            stack.callback(controller.stop)
            controller.start()
            controller.wait_ready()
            return controller

        yield start


@pytest.fixture(scope="session")
def sentence_piece() -> Callable[..., Tokenizer]:
    """Trains Llama's kind of tokenizer: byte fallback, and a space before the first word, which checkpoints tell in an
    older way (`legacy`: before every stretch of text) and a newer one."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    def train(corpus: Sequence[str], special: Sequence[str], size: int, *, legacy: bool) -> Tokenizer:
        trained = Tokenizer(models.BPE(unk_token="<unk>"))
        trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[*special, *byte_tokens], show_progress=False)
        trained.train_from_iterator(corpus, trainer)
        raw = json.loads(trained.to_str())
        raw["added_tokens"] = raw["added_tokens"][: len(special)]  # byte tokens are no special tokens
        raw["model"] |= {"byte_fallback": True, "fuse_unk": True}
        tokenizer = Tokenizer.from_str(json.dumps(raw))
        if legacy:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            tokenizer.pre_tokenizer = None  # type: ignore[assignment]
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        return tokenizer

    return train


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    return Pictures()


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], Any], str], Any]:
    return until


@pytest.fixture(scope="session")
def answer_as_documented() -> Callable[[Any], Any]:
    """A worker's part, for aiohttp: reads requests by the documented schema, answers with the document's examples."""
    from aiohttp import web

    from server.api.openapi import OPERATIONS
    from server.protocol.errors import ApiError
    from server.protocol.validation import parse_request

    operations = {operation.path: operation for operation in OPERATIONS if operation.method == "POST"}

    async def answer(request: web.Request) -> web.StreamResponse:
        operation = operations[request.path]
        assert operation.body is not None
        try:
            asked: Any = parse_request(operation.body, await request.read())
            getattr(asked, "structure", dict)()
        except ApiError as error:
            return web.json_response(error.body(), status=error.status, headers=error.headers)
        whole: Any = operation.answers[0].example
        if not getattr(asked, "stream", False):
            return web.json_response(whole)
        choice = whole["choices"][0]
        if "message" in choice:
            whole = {**whole, "object": "chat.completion.chunk"}
            choice = {
                "index": 0,
                "delta": choice["message"],
                "logprobs": None,
                "finish_reason": choice["finish_reason"],
            }
        chunks = [{**whole, "choices": [choice], "usage": None}]
        if asked.include_usage:
            chunks.append({**whole, "choices": []})
        data = [*map(json.dumps, chunks), "[DONE]"]
        text = "".join(f"data: {one}\n\n" for one in data)
        return web.Response(text=text, content_type="text/event-stream")

    return answer


@pytest.fixture(scope="session")
def check_documented() -> Callable[[Mapping[str, Any], Mapping[str, Any], Any], None]:
    """Holds a value against a schema of the OpenAPI document, in which every field of it must stand."""
    import jsonschema

    def closed(schema: Any) -> Any:
        if isinstance(schema, list):
            return [closed(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        inner = {name: closed(one) for name, one in schema.items()}
        return inner if "properties" not in schema else {"additionalProperties": False, **inner}

    def check(document: Mapping[str, Any], schema: Mapping[str, Any], value: Any) -> None:
        whole = closed({**schema, "components": {"schemas": document["components"]["schemas"]}})
        jsonschema.Draft202012Validator(whole).validate(value)

    return check
