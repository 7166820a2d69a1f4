"""`tephra up`: everything on this machine. Checkpoint first, then shared state, controller and workers, each a process.

The order of starting is the order of need; the order of stopping is the reverse, and is over within five seconds. What
can be known to fail (port taken, no such model, full disk) is found before anything runs. Settings of the parts that
are no flag here travel in the environment: a child sees every TEPHRA_* name that this process sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis
from rich.console import Console

from deploy import lifeline
from deploy.display import StartDisplay, print_summary
from deploy.folders import bound_log, new_run_folder, state_folder
from deploy.supervisor import Part, PartFailed, Probe, Stage, Supervised, last_words
from model.config.llava import MODEL_TYPES
from model.config.original import is_original
from server.settings import MOST_PROCESSES
from server.state import EmbeddedValkey, StateError

MOST_WORKERS = 64
DEMO = "demo"
CHAT_TEMPLATES = ("plain", "v0", "v1", "mistral", "chatml", "qwen_1_5", "llama_3")  # by name; else a file
_MOST_CONFIG = 16 << 20  # bytes of a config.json; more is cut off and is no JSON
_DRAIN_SECONDS = 1.5  # what the parts are told about finishing answers
_STOP_SECONDS = 3.0  # for the parts to end by themselves; what is left then is killed
_KILLED_SECONDS = 0.5
_STATE_STOP_SECONDS = 0.5
_CONTROLLER_SECONDS = 60.0  # most time for the controller to start, and to see its workers
_STATE_PROBE_SECONDS = 1.0
_LOG_SECONDS = 5.0  # between two looks at the logs' sizes
_MOST_LOG = 64 << 20  # bytes
_STATE_MISSES = 3  # pings in a row without an answer, after which the embedded Valkey is started anew
# -P: a folder called `model` or `server` where the command was given must not be taken for ours.
_MODULE = (sys.executable, "-P", "-m")
# Names that say where one process listens or who it is: given to each part by flag, never inherited by all of them.
_OWN_NAMES = ("TEPHRA_HOST", "TEPHRA_PORT", "TEPHRA_WORKER_ID", "TEPHRA_WORKER_URL", "TEPHRA_CONTROLLER_URL")


class LaunchError(Exception):
    """Nothing runs, and this is why: one line, with what to do."""


class AlreadyTold(LaunchError):
    """Nothing runs, and the person at the terminal has been told why."""


@dataclass(frozen=True)
class Launch:
    """What `tephra up` was asked for."""

    model: str = "demo"
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    workers: int = 1
    redis_url: str | None = None  # None: an embedded Valkey
    start_seconds: float = 900.0  # most time for a worker to load its model
    chat_template: str | None = None  # name or file; None: the checkpoint's own
    processes: int = 1  # of the controller


def up(launch: Launch, console: Console) -> int:
    """Runs until SIGINT or SIGTERM and returns the exit code. Raises LaunchError when it cannot start."""
    if not 1 <= launch.workers <= MOST_WORKERS:
        raise LaunchError(f"--workers must be 1 to {MOST_WORKERS}, not {launch.workers}.")
    if not 1 <= launch.processes <= MOST_PROCESSES:
        raise LaunchError(f"--processes must be 1 to {MOST_PROCESSES}, not {launch.processes}.")
    check_model(launch.model)
    check_template(launch.chat_template)
    port = launch.port or _free_port(launch.host)
    check_port(launch.host, port)
    try:
        folder = new_run_folder(state_folder())
    except OSError as error:
        raise LaunchError(f"Cannot write logs under {state_folder()}: {error.strerror}.") from error
    return asyncio.run(_System(launch, port, folder, console).run())


def check_port(host: str, port: int) -> None:
    """Raises LaunchError when nobody can listen there."""
    if not 1 <= port <= 65535:
        raise LaunchError(f"{port} is no port: choose one of 1 to 65535 with --port, or 0 for any free one.")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in addresses[:1]:
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
    except socket.gaierror as error:
        raise LaunchError(f"{host} is no address of this machine: {error.strerror}.") from error
    except OSError as error:
        raise LaunchError(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.") from error


def check_model(model: str) -> None:
    """Raises LaunchError when there is no such checkpoint, or one that must be imported first. The demo is always to
    be had."""
    if model == DEMO:
        return
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        raise LaunchError(f"No checkpoint at {model}: expected a folder with config.json, or '{DEMO}'.{_advice(model)}")
    kind, imported = _model_type(folder / "config.json"), f"'tephra checkpoint import {model} FOLDER'"
    if kind is None:
        raise LaunchError(f"{model} is in the original layout: {imported} makes a checkpoint that can be served.")
    if kind not in MODEL_TYPES:
        raise LaunchError(f"{model} is no LLaVA: its model_type is {kind!r}, expected {', '.join(MODEL_TYPES)}.")
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise LaunchError(f"{model} holds pickled weights: {imported} makes a checkpoint that can be served.")


def check_template(name_or_file: str | None) -> None:
    """Raises LaunchError when it names no chat template of ours and no file that can be read."""
    if name_or_file is None or name_or_file in CHAT_TEMPLATES:
        return
    file = Path(name_or_file).expanduser()
    if not file.is_file():
        raise LaunchError(f"No chat template {name_or_file!r}: expected one of {', '.join(CHAT_TEMPLATES)}, or a file.")
    try:
        file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"{file}: cannot be read as UTF-8 text ({error}).") from error


def _model_type(config: Path) -> str | None:
    """What config.json calls the model; None where it is of the original layout."""
    try:
        with config.open("rb") as file:
            raw = json.loads(file.read(_MOST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise LaunchError(f"{config}: cannot be read as JSON ({error}).") from error
    if not isinstance(raw, dict):
        raise LaunchError(f"{config}: expected a JSON object.")
    return None if is_original(raw) else str(raw.get("model_type"))


def _advice(model: str) -> str:
    """For a name on a hub, where a folder is expected."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or Path(model).parent.exists():
        return ""
    return f" Nothing is downloaded here: 'hf download {model} --local-dir FOLDER' brings it."


class _System:
    """All parts of one run."""

    def __init__(self, launch: Launch, port: int, folder: Path, console: Console) -> None:
        self._launch, self._port, self._folder, self._console = launch, port, folder, console
        self._display = StartDisplay(console)
        self._valkey = EmbeddedValkey() if launch.redis_url is None else None
        self._secret = os.environ.get("TEPHRA_WORKER_SECRET") or secrets.token_urlsafe(32)
        self._controller: Supervised | None = None
        self._workers: list[Supervised] = []
        self._worker_ports: list[int] = []
        self._tasks: list[asyncio.Task[None]] = []  # of the parts; they end when their parts do, and are not cancelled
        self._stop = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        limits = httpx.Limits(max_keepalive_connections=0)  # a kept connection would hold up a server that stops
        # trust_env: a proxy named in the environment is for the outside, not for this machine's own addresses.
        async with httpx.AsyncClient(timeout=2.0, trust_env=False, limits=limits) as client:
            started = asyncio.create_task(self._start(client))
            asked = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait((started, asked), return_when=asyncio.FIRST_COMPLETED)
                if not started.done():
                    return 0  # asked to stop before it was up
                started.result()
                return await self._keep_all(asked)
            finally:
                for task in (started, asked):
                    task.cancel()
                await asyncio.gather(started, asked, return_exceptions=True)
                await self._stop_all()

    async def _start(self, client: httpx.AsyncClient) -> None:
        """Raises LaunchError. What was started by then is stopped by the caller."""
        checkpoint = await _demo_folder() if self._launch.model == DEMO else self._launch.model
        began = time.monotonic()
        with self._display:
            try:
                url = self._start_state()
                self._make_parts(client, checkpoint, url)
                assert self._controller is not None
                self._tasks = [asyncio.create_task(part.start()) for part in (self._controller, *self._workers)]
                done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
                for start in done:
                    start.result()
                model = await self._until_served(client)
            except PartFailed as error:
                raise LaunchError(f"{error}{last_words(error.tail)} The logs are in {self._folder}.") from error
            except StateError as error:
                raise LaunchError(str(error)) from error
            except OSError as error:
                raise LaunchError(f"Cannot start a process: {error.strerror or error}.") from error
        self._print_summary(model, time.monotonic() - began)

    def _start_state(self) -> str:
        """The Redis URL for all parts. On the main thread: an embedded Valkey ends with the thread that started it."""
        if self._valkey is None:
            assert self._launch.redis_url is not None
            try:
                with redis.Redis.from_url(self._launch.redis_url, socket_timeout=5, socket_connect_timeout=5) as client:
                    client.ping()
            except (redis.RedisError, ValueError) as error:
                raise LaunchError(f"No answer from the Redis of --redis-url (TEPHRA_REDIS_URL): {error}.") from error
            return self._launch.redis_url
        self._display.stage("valkey", Stage.STARTING)
        self._valkey.start()
        self._display.stage("valkey", Stage.READY)
        return self._valkey.url

    def _make_parts(self, client: httpx.AsyncClient, checkpoint: str, redis_url: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in _OWN_NAMES}
        shared = {"TEPHRA_REDIS_URL": redis_url, "TEPHRA_WORKER_SECRET": self._secret, "PYTHONUNBUFFERED": "1"}
        environment = {**inherited, **shared}
        controller = Part(
            name="controller",
            command=(
                *(*_MODULE, "server", "--host", self._launch.host, "--port", str(self._port)),
                *("--shutdown-seconds", f"{_DRAIN_SECONDS:g}", "--processes", str(self._launch.processes)),
            ),
            environment=environment,
            log=self._folder / "controller.log",
            probe=_http_probe(client, f"{self._base}/health/live"),
            start_seconds=_CONTROLLER_SECONDS,
        )
        self._controller = Supervised(controller, self._display)
        # As the logs and this terminal call them; told apart from those of other machines where Redis is shared.
        suffix = "" if self._valkey is not None else f"-{secrets.token_hex(3)}"
        worker_environment = {**environment, **_thread_share(self._launch.workers, os.environ)}
        for number in range(1, self._launch.workers + 1):
            name, port = f"worker-{number}", _free_port("127.0.0.1")
            self._worker_ports.append(port)
            command = (
                *(*_MODULE, "worker", "--model", checkpoint),
                *(("--served-name", DEMO) if self._launch.model == DEMO else ()),
                *(("--chat-template", self._launch.chat_template) if self._launch.chat_template else ()),
                *("--host", "127.0.0.1", "--port", str(port), "--controller", self._base),
                *("--worker-id", f"{name}{suffix}"),
                *("--drain-seconds", f"{_DRAIN_SECONDS:g}"),
            )
            probe = _http_probe(client, f"http://127.0.0.1:{port}/health/ready")
            log = self._folder / f"{name}.log"
            part = Part(name, command, worker_environment, log, probe, self._launch.start_seconds)
            self._workers.append(Supervised(part, self._display))

    async def _until_served(self, client: httpx.AsyncClient) -> str:
        """Waits for the controller to have a worker; the model's name. The worker is asked for it, since whoever has
        the secret may: of the clients' keys the launcher knows none, where they stand hashed in a file."""
        headers = {"Authorization": f"Bearer {self._secret}"}
        deadline = time.monotonic() + _CONTROLLER_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):  # asked again until the deadline
                ready = await client.get(f"{self._base}/health/ready")
                answer = await client.get(f"http://127.0.0.1:{self._worker_ports[0]}/v1/models", headers=headers)
                if ready.status_code == answer.status_code == 200:
                    return str(answer.json()["data"][0]["id"])
            await asyncio.sleep(0.1)
        raise LaunchError(f"The workers are ready, but the controller has none (logs: {self._folder}).")

    async def _keep_all(self, asked: asyncio.Task[bool]) -> int:
        """Watches over the parts until somebody asks to stop, or until what is left cannot serve."""
        assert self._controller is not None
        controller = asyncio.create_task(self._controller.keep())
        workers = [asyncio.create_task(worker.keep()) for worker in self._workers]
        self._tasks = [controller, *workers]
        no_worker_left = asyncio.create_task(_all_done(workers))
        state = asyncio.create_task(self._keep_state())
        logs = asyncio.create_task(self._bound_logs())
        try:
            await asyncio.wait((asked, controller, no_worker_left, state), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                self._console.print("Stopping.")
                return 0
            reason = f"{state.exception()}." if state.done() else "Nothing is left that can serve."
            self._console.print(f"{reason} Stopping; the logs are in {self._folder}.", soft_wrap=True)
            return 1
        finally:
            for task in (state, no_worker_left, logs):
                task.cancel()
            await asyncio.gather(state, no_worker_left, logs, return_exceptions=True)

    async def _keep_state(self) -> None:
        """Starts the embedded Valkey anew when it no longer answers. Raises StateError when that fails."""
        misses = 0
        while True:
            await asyncio.sleep(_STATE_PROBE_SECONDS)
            if self._valkey is None:
                continue  # somebody else's Redis is somebody else's to keep
            misses = 0 if await _answers(self._valkey.url) else misses + 1
            if misses >= _STATE_MISSES:
                self._display.say("The embedded Valkey does not answer; starting it again.")
                self._valkey.halt(timeout=1.0)
                self._valkey.start()
                misses = 0

    async def _bound_logs(self) -> None:
        """What the parts write for as long as they run must not fill the disk."""
        told: set[Path] = set()
        while True:
            await asyncio.sleep(_LOG_SECONDS)
            for part in (self._controller, *self._workers):
                assert part is not None
                try:
                    await asyncio.to_thread(bound_log, part.part.log, _MOST_LOG)
                except OSError as error:
                    if part.part.log not in told:
                        told.add(part.part.log)
                        self._display.say(f"{part.part.log} cannot be held to its size: {error.strerror}.")

    async def _stop_all(self) -> None:
        parts = [part for part in (*self._workers, self._controller) if part is not None]
        for part in parts:
            part.ask_to_stop()
        await self._ended(parts, _STOP_SECONDS)
        for part in parts:
            part.kill()
        await self._ended(parts, _KILLED_SECONDS)
        if self._valkey is not None:
            self._valkey.stop(timeout=_STATE_STOP_SECONDS)

    async def _ended(self, parts: list[Supervised], seconds: float) -> None:
        """Waits this long at most; failures were told when they came."""
        waits = [asyncio.ensure_future(part.stopped()) for part in parts]
        if waits:
            done, _ = await asyncio.wait((*waits, *self._tasks), timeout=seconds)
            await asyncio.gather(*done, return_exceptions=True)

    @property
    def _base(self) -> str:
        """The controller's address as this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._launch.host, self._launch.host)
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self._port}"

    def _print_summary(self, model: str, seconds: float) -> None:
        workers = f"{self._launch.workers} worker{'s' if self._launch.workers > 1 else ''}"
        rows = [
            ("Model", f"{model} on {workers}, up in {seconds:.0f} s"),
            ("Playground", f"{self._base}/"),
            ("Dashboard", f"{self._base}/dashboard"),
            ("API", f"{self._base}/v1"),
            ("Metrics", f"{self._base}/metrics"),
            ("Logs", str(self._folder)),
        ]
        with_key = any(os.environ.get(name) for name in ("TEPHRA_API_KEYS", "TEPHRA_KEYS_FILE"))
        commands = example(self._base, model, with_key)
        print_summary(rows, commands, self._console)


def example(base: str, model: str, with_key: bool) -> str:
    """Two commands to paste. The picture goes through stdin: as an argument it would be too long for most shells."""
    key = " -H 'Authorization: Bearer YOUR_KEY'" if with_key else ""
    flag = " --api-key YOUR_KEY" if with_key else ""
    picture = "data:image/jpeg;base64,'; base64 < picture.jpg | tr -d '\\n'; printf '"
    lines = (
        f"{_own_name()} chat --url {base}{flag} --image picture.jpg 'What is in the picture?'",
        "",
        f"""(printf '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": [""",
        """  {"type": "text", "text": "What is in the picture?"},""",
        f"""  {{"type": "image_url", "image_url": {{"url": "{picture}"}}}}]}}]}}'""",
        f""") | curl -N {base}/v1/chat/completions{key} -H 'Content-Type: application/json' -d @-""",
    )
    return "\n".join(lines)


def _own_name() -> str:
    """How this command can be given again, from where it was given: its folder may not be on the PATH."""
    command = Path(sys.executable).with_name("tephra")
    if not command.exists() or shutil.which("tephra") == str(command):
        return "tephra"
    here = Path.cwd()
    return str(command.relative_to(here) if command.is_relative_to(here) else command)


async def _demo_folder() -> str:
    """Where the demo checkpoint is. It is assembled, with a progress bar, in a process of its own, whose memory is free
    again afterwards. Raises AlreadyTold."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", lifeline.__file__, *_MODULE, "deploy.demo"),
        stdin=asyncio.subprocess.PIPE,  # held open for as long as it is wanted
        stdout=asyncio.subprocess.PIPE,
        process_group=0,
    )
    assert process.stdout is not None
    try:
        folder = (await process.stdout.read()).decode().strip()
        if await process.wait() != 0:
            raise AlreadyTold
        return folder
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself, as it should
            os.killpg(process.pid, signal.SIGKILL)


def _http_probe(client: httpx.AsyncClient, url: str) -> Probe:
    """No connection: starting. Any answer but 200: loading."""

    async def probe() -> Stage:
        try:
            answer = await client.get(url)
        except httpx.ConnectError:
            return Stage.STARTING
        except httpx.HTTPError:
            return Stage.LOADING
        return Stage.READY if answer.status_code == 200 else Stage.LOADING

    return probe


async def _all_done(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


async def _answers(redis_url: str) -> bool:
    """One ping, within a second."""
    client = redis.asyncio.Redis.from_url(redis_url, socket_timeout=1.0, socket_connect_timeout=1.0)
    try:
        return bool(await client.ping())
    except redis.RedisError:
        return False
    finally:
        await client.aclose()


def _thread_share(workers: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Several workers share the cores; else each would start a thread for every core, to the loss of all."""
    if workers == 1 or "OMP_NUM_THREADS" in environment or "TEPHRA_THREADS" in environment:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"TEPHRA_THREADS": str(max(1, cores // workers))}


def _free_port(host: str) -> int:
    """A port that nobody listens on now. Raises LaunchError when `host` is not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind((host, 0))
            return int(trial.getsockname()[1])
    except OSError as error:
        raise LaunchError(f"{host} is no address of this machine: {error.strerror}.") from error
