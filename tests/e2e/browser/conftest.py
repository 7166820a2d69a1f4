"""A real controller, a real worker on a tiny random checkpoint, and headless Chromium in front of them.

Screenshots go to pytest's temporary folder; `TEPHRA_SCREENSHOTS=folder` keeps them. Every page that a test opens is
watched: an unexpected line on the browser's error console fails the test, a breach of the content policy included, and
so does a request to anywhere but the controller.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from model.tiny import make_tiny_checkpoint

ROOT = Path(__file__).parents[3]
START_SECONDS = 60
STOP_SECONDS = 10
CHROMIUM_FLAGS = (
    "--no-sandbox",  # CI runs as root in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A process of ours that listens."""

    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextmanager
def serving(module: str, path: str, log: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """Runs `python -m module` until `path` answers 200."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(port), *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TEPHRA_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, env=inherited | {"OMP_NUM_THREADS": "1"} | environment
        )
        server = Server(url, process)
        try:
            deadline = time.monotonic() + START_SECONDS
            while _get(url + path) != 200:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"{module} did not start:\n{log.read_text()[-4000:]}")
                time.sleep(0.1)
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a controller with one worker behind it."""
    folder = tmp_path_factory.mktemp("system")
    checkpoint = make_tiny_checkpoint(folder / "tiny-llava")
    secret = {"TEPHRA_WORKER_SECRET": "browser-tests"}
    with (
        serving("server", "/health/live", folder / "controller.log", **secret) as controller,
        serving(
            "worker",
            "/health/live",
            folder / "worker.log",
            "--model",
            str(checkpoint),
            "--dtype",
            "float32",  # in which the random model talks on wherever the tests run
            "--controller",
            controller.url,
            **secret,
        ),
    ):
        deadline = time.monotonic() + START_SECONDS
        while _get(controller.url + "/health/ready") != 200:
            if time.monotonic() > deadline:
                pytest.fail("the worker did not join:\n" + (folder / "worker.log").read_text()[-4000:])
            time.sleep(0.1)
        yield controller.url


@pytest.fixture
def lone_controller(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts controllers without any worker; takes their environment."""
    with ExitStack() as stack:
        yield lambda **environment: stack.enter_context(
            serving("server", "/health/live", tmp_path / "controller.log", **environment)
        )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    assert executable, "the browser tests need chromium on the PATH"
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_FLAGS))
        yield chromium
        await chromium.close()


@dataclass
class Visit:
    """One page of one person, and what its error console said."""

    page: Page
    folder: Path
    expected: list[str] = field(default_factory=list)  # patterns of console errors that the test provokes
    errors: list[str] = field(default_factory=list)

    def watch(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def watch_request(self, home: str, url: str) -> None:
        if not url.startswith((home.removesuffix("/dashboard") + "/", "data:", "blob:")):
            self.errors.append(f"a request left for {url}")

    async def shoot(self, name: str) -> None:
        await self.page.screenshot(path=self.folder / f"{name}.png", animations="disabled")

    @property
    def unexpected(self) -> list[str]:
        return [error for error in self.errors if not any(re.search(pattern, error) for pattern in self.expected)]


Visitor = Callable[..., Awaitable[Visit]]


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser: Browser, tmp_path: Path) -> AsyncIterator[Visitor]:
    """Opens pages as a new person each; looks at their consoles when the test ends."""
    visits: list[Visit] = []
    folder = Path(os.environ.get("TEPHRA_SCREENSHOTS") or tmp_path)
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)

    async def opened(url: str, *, dark: bool = False, width: int = 1280, height: int = 860) -> Visit:
        context = await browser.new_context(
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": height},
            permissions=["clipboard-read", "clipboard-write"],
        )
        page = await context.new_page()
        page.set_default_timeout(20_000)
        result = Visit(page, folder)
        page.on("console", result.watch)
        page.on("pageerror", lambda error: result.errors.append(str(error)))
        page.on("request", lambda request: result.watch_request(url, request.url))
        visits.append(result)
        await page.goto(url)
        return result

    yield opened
    for each in visits:
        await each.page.context.close()
    assert [error for each in visits for error in each.unexpected] == []
