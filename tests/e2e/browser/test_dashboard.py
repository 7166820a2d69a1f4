"""The dashboard of a real system: its worker, its requests, and what it says when the controller does not answer."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import Route, expect

if TYPE_CHECKING:
    from tests.e2e.browser.conftest import Server, Visitor

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


def _post(url: str, body: dict[str, Any]) -> int:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


async def ask(system: str, **fields: Any) -> int:
    with urllib.request.urlopen(system + "/v1/models", timeout=10) as response:
        model = json.load(response)["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 12} | fields
    return await asyncio.to_thread(_post, system + "/v1/chat/completions", body)


async def test_the_worker_and_the_requests_that_were_made_are_shown(system: str, visit: Visitor) -> None:
    assert await ask(system, stream=True) == 200
    visitor = await visit(system + "/dashboard")
    page = visitor.page
    await expect(page.locator("#headline")).to_have_text(
        re.compile(r"^1 worker ready, no answers running, 0 waiting\.$")
    )
    workers = page.locator("#workers tbody tr")
    await expect(workers).to_have_count(1)
    await expect(workers.locator(".status")).to_have_text(re.compile("^(healthy|slow start)$"))
    await expect(workers).to_contain_text("cpu")
    recent = page.locator("#recent tbody tr")
    await expect(recent.first.locator(".status")).to_have_text("complete")
    before = await page.locator("[data-measure=requests] .more").text_content()

    assert await ask(system, stream=True) == 200
    assert await ask(system, temperature=9) == 400
    await expect(page.locator("#errors tbody tr")).to_contain_text(["400"])
    await expect(page.locator("#recent tbody tr").first.locator(".status")).to_have_text("400")
    await expect(page.locator("[data-measure=requests] .more")).not_to_have_text(before or "")
    await expect(page.locator("[data-measure=requests] path.bars:not(.bad)")).to_have_attribute("d", re.compile("^M"))
    await expect(page.locator("[data-measure=ttft] .value")).to_have_text(re.compile(r"\d"))
    await expect(page.locator("[data-measure=latency] path.p50")).to_have_attribute("d", re.compile("^M"))


async def test_a_controller_that_went_away_is_said_to_be_away_and_the_old_figures_to_be_old(
    lone_controller: Callable[..., Server], visit: Visitor
) -> None:
    server = lone_controller()
    visitor = await visit(server.url + "/dashboard")
    visitor.expected = ["net::ERR_CONNECTION_REFUSED"]
    page = visitor.page
    await expect(page.locator("#headline")).to_have_text("No workers ready, no answers running, 0 waiting.")
    await expect(page.locator("#workers")).to_have_text("No worker has joined yet.")
    await asyncio.to_thread(server.stop)
    await expect(page.locator("#headline")).to_have_text("The controller cannot be reached.")
    await expect(page.locator("#notice")).to_contain_text("The figures below are from ")
    await visitor.shoot("dashboard-unreachable")


async def test_lost_shared_state_is_said(system: str, visit: Visitor) -> None:
    visitor = await visit(system + "/dashboard")
    page = visitor.page

    async def lose(route: Route) -> None:
        response = await route.fetch()
        await route.fulfill(response=response, json=await response.json() | {"registry": "lost"})

    await expect(page.locator("#notice")).to_be_hidden()
    await page.route("**/admin/stats", lose)
    await expect(page.locator("#notice")).to_contain_text("The shared state (Redis) is lost")
    await page.unroute_all(behavior="wait")
    await expect(page.locator("#notice")).to_be_hidden()


async def test_the_admin_key_is_asked_for_and_kept_in_the_tab_only(
    lone_controller: Callable[..., Server], visit: Visitor
) -> None:
    visitor = await visit(lone_controller(TEPHRA_ADMIN_KEY="operator").url + "/dashboard")
    visitor.expected = [r"status of 401"]
    page = visitor.page
    await expect(page.locator("#notice")).to_have_text("The controller asks for its admin key.")
    await expect(page.locator("#board")).to_be_hidden()
    await page.get_by_label("Admin key").fill("guess")
    await page.keyboard.press("Enter")
    await expect(page.locator("#notice")).to_have_text("The controller did not accept this admin key.")
    await page.get_by_label("Admin key").fill("operator")
    await page.keyboard.press("Enter")
    await expect(page.locator("#board")).to_be_visible()
    await expect(page.locator("#notice")).to_be_hidden()
    assert await page.evaluate("[...Object.values(sessionStorage)]") == ["operator"]
    assert await page.evaluate("localStorage.length") == 0


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (False, 390), (True, 820)])
async def test_the_dashboard_fits_its_window(system: str, visit: Visitor, dark: bool, width: int) -> None:
    visitor = await visit(system + "/dashboard", dark=dark, width=width, height=900)
    await expect(visitor.page.locator("#workers tbody tr")).to_have_count(1)
    await visitor.shoot(f"dashboard-{'dark' if dark else 'light'}-{width}")
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert await visitor.page.evaluate(fits)
