"""Headless Chromium in front of a real controller and real workers on a tiny random checkpoint.

Screenshots go to pytest's temporary folder; `TEPHRA_SCREENSHOTS=folder` keeps them. Every page that a test opens is
watched: an unexpected line on the browser's error console fails the test, a breach of the content policy included, and
so does a request to anywhere but the controller.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

if TYPE_CHECKING:
    from tests.fixtures.system import RunningSystem, System

ADMIN_KEY = "operator"
CHROMIUM_FLAGS = (
    "--no-sandbox",  # CI runs as root in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def whole_system(running_system: RunningSystem) -> Iterator[System]:
    """A controller with two workers behind it, open to clients; its operators have a key."""
    with running_system({"api_keys": "", "admin_key": ADMIN_KEY, "slow_start_seconds": 1}, {}) as system:
        yield system


@pytest.fixture
def system(whole_system: System) -> str:
    """Its address."""
    return whole_system.url


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

    async def shoot(self, name: str, *, whole: bool = False) -> None:
        """`whole`: also what lies below the window."""
        await self.page.screenshot(path=self.folder / f"{name}.png", animations="disabled", full_page=whole)

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
