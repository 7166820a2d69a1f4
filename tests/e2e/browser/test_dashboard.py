"""The dashboard of a real system: its workers, its requests, what an operator does there, and what it says when
something is lost."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import Page, Route, expect

if TYPE_CHECKING:
    from tests.e2e.browser.conftest import Visit, Visitor
    from tests.fixtures.pictures import Pictures
    from tests.fixtures.system import Process, System

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


def _post(url: str, body: dict[str, Any]) -> int:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


async def ask(system: System, **fields: Any) -> int:
    messages = [{"role": "user", "content": "Hello?"}]
    body = {"model": system.model, "messages": messages, "max_tokens": 12, "ignore_eos": True} | fields
    return await asyncio.to_thread(_post, system.url + "/v1/chat/completions", body)


async def operate(visit: Visitor, system: System, **how: Any) -> Visit:
    """The dashboard, with the admin key given."""
    visitor = await visit(system.url + "/dashboard", **how)
    visitor.expected = [r"status of 401"]
    await visitor.page.get_by_label("Admin key").fill(system.admin_key)
    await visitor.page.keyboard.press("Enter")
    await expect(visitor.page.locator("#board")).to_be_visible()
    return visitor


def row(page: Page, worker: str) -> Any:
    return page.locator("#workers tbody tr", has=page.get_by_text(worker, exact=True))


async def test_the_workers_and_the_requests_that_were_made_are_shown(
    whole_system: System, visit: Visitor, pictures: Pictures
) -> None:
    picture = [{"role": "user", "content": [pictures.part(3), {"type": "text", "text": "A secret question?"}]}]
    assert await ask(whole_system, stream=True, messages=picture) == 200
    page = (await operate(visit, whole_system)).page
    await expect(page.locator("#headline")).to_have_text(
        re.compile(r"^2 workers ready, no answers running, 0 waiting\.$")
    )
    for worker in ("east", "west"):
        await expect(row(page, worker).locator(".status")).to_have_text(re.compile("^(healthy|slow start)$"))
        await expect(row(page, worker)).to_contain_text("native on cpu")
        await expect(row(page, worker)).to_contain_text(re.compile(r"0 / \d+"))
    await expect(page.locator("#recent tbody tr").first.locator(".status")).to_have_text("complete")
    before = await page.locator("[data-count=requests] dd").text_content()

    for _ in range(3):
        assert await ask(whole_system, stream=True) == 200
    assert await ask(whole_system, temperature=9) == 400
    await expect(page.locator("#errors tbody tr")).to_contain_text(["400"])
    await expect(page.locator("#recent tbody tr").first.locator(".status")).to_have_text("400")
    await expect(page.locator("[data-count=requests] dd")).not_to_have_text(before or "")
    await expect(page.locator("[data-measure=requests] path.bars:not(.bad)")).to_have_attribute("d", re.compile("^M"))
    await expect(page.locator("#workers")).to_contain_text(re.compile(r"\d+%"))
    assert "secret" not in await page.content()


async def test_percentiles_are_those_of_the_time_that_is_chosen(whole_system: System, visit: Visitor) -> None:
    assert await ask(whole_system, stream=True, max_tokens=30) == 200
    page = (await operate(visit, whole_system)).page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for name in ("ttft", "between", "latency"):
        await expect(page.locator(f"[data-measure={name}] .value")).to_have_text(re.compile(r"\d"))
        await expect(page.locator(f"[data-measure={name}] .more")).to_have_text(re.compile(r"^p90 .*\d.* · p99 .*\d"))
        await expect(page.locator(f"[data-measure={name}] path.p50")).to_have_attribute("d", re.compile("^M"))
    await page.get_by_text("15 min", exact=True).click()
    await expect(page.get_by_label("15 min")).to_be_checked()
    async with page.expect_response(re.compile(r"/admin/stats\?window=900$")):
        pass
    assert not [url for url in asked if whole_system.admin_key in url]


async def test_slow_requests_are_listed_with_where_their_time_went(whole_system: System, visit: Visitor) -> None:
    assert await ask(whole_system, stream=True, max_tokens=300) == 200
    page = (await operate(visit, whole_system)).page
    slowest = page.locator("#slowest tbody tr").first
    await expect(slowest.locator(".spans-cell")).to_contain_text("decode")
    await expect(slowest.locator("svg.spans")).to_have_attribute("aria-label", re.compile("prefill .*decode"))
    await expect(slowest.locator(".id")).to_have_text(re.compile("^[0-9a-f]{32}$"))
    await expect(slowest).to_contain_text(re.compile("(east|west) · "))


async def test_a_worker_is_drained_and_taken_back_after_a_question(whole_system: System, visit: Visitor) -> None:
    visitor = await operate(visit, whole_system)
    page = visitor.page
    drain = page.get_by_role("button", name="drain east", exact=True)
    await drain.click()
    await expect(page.get_by_role("dialog")).to_contain_text("Drain east?")
    await visitor.shoot("dashboard-drain")
    await page.get_by_role("button", name="Cancel").click()
    await expect(row(page, "east").locator(".status")).to_have_text(re.compile("^(healthy|slow start)$"))
    assert "east" in whole_system.members() and whole_system.members()["east"]["draining_since"] is None

    await drain.click()
    await page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    await expect(page.locator("#outcome")).to_have_text("east drains: it gets no new requests.")
    await expect(row(page, "east").locator(".status")).to_have_text("drained, safe to stop")
    await expect(page.locator("#headline")).to_contain_text("1 worker ready")
    assert whole_system.members()["east"]["state"] == "drained"

    await page.get_by_role("button", name="undrain east", exact=True).click()
    await page.get_by_role("dialog").get_by_role("button", name="Undrain").click()
    await expect(page.locator("#outcome")).to_have_text("east gets requests again.")
    await expect(row(page, "east").locator(".status")).to_have_text(re.compile("^(healthy|slow start)$"))
    assert await page.evaluate("location.href") == whole_system.url + "/dashboard"


async def test_an_action_that_fails_is_told_with_the_servers_words(whole_system: System, visit: Visitor) -> None:
    visitor = await operate(visit, whole_system)
    visitor.expected.append("status of 503")
    page = visitor.page
    body = {"error": {"message": "Drains are kept in Redis, which cannot be reached.", "type": "server_error"}}
    await page.route("**/drain", lambda route: route.fulfill(status=503, json=body))
    await page.get_by_role("button", name="drain west", exact=True).click()
    await page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    await expect(page.locator("#outcome")).to_have_text(
        "west was not changed. Drains are kept in Redis, which cannot be reached."
    )
    assert whole_system.members()["west"]["draining_since"] is None


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("joining", "joining"),
        ("slow_start", "slow start"),
        ("open", "breaker open"),
        ("half_open", "breaker half open"),
        ("unhealthy", "unhealthy"),
        ("draining", "draining"),
        ("drained", "drained, safe to stop"),
        ("lost", "lost"),
    ],
)
async def test_each_state_of_a_worker_has_its_words(
    whole_system: System, visit: Visitor, state: str, shown: str
) -> None:
    page = (await operate(visit, whole_system)).page

    async def change(route: Route) -> None:
        response = await route.fetch()
        told = await response.json()
        changed = told["workers"][0] | {"state": state, "breaker": "open", "breaker_reason": "failures", "weight": 0.4}
        if state == "lost":
            told |= {"workers": told["workers"][1:], "lost": [changed | {"lost_seconds": 12.0}]}
        else:
            told["workers"][0] = changed
        await route.fulfill(response=response, json=told)

    await page.route("**/admin/workers", change)
    await expect(row(page, "east").locator(".status")).to_have_text(shown)
    await expect(row(page, "east")).to_contain_text("weight 40%")
    if state == "lost":
        await expect(row(page, "east")).to_contain_text("lost 12 s ago")
        await expect(row(page, "east").get_by_role("button")).to_have_count(0)
    await page.unroute_all(behavior="wait")


async def test_a_controller_that_went_away_is_said_to_be_away_and_the_old_figures_to_be_old(
    lone_controller: Callable[..., Process], visit: Visitor
) -> None:
    controller = lone_controller()
    visitor = await visit(controller.url + "/dashboard")
    visitor.expected = ["net::ERR_CONNECTION_REFUSED"]
    page = visitor.page
    await expect(page.locator("#headline")).to_have_text("No workers ready, no answers running, 0 waiting.")
    await expect(page.locator("#workers")).to_have_text("No worker has joined yet.")
    await expect(page.locator("#notice")).to_contain_text("No worker has joined")
    await asyncio.to_thread(controller.stop)
    await expect(page.locator("#headline")).to_have_text("The controller cannot be reached.")
    await expect(page.locator("#notice")).to_contain_text("The figures below are from ")
    await visitor.shoot("dashboard-unreachable")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"registry": "lost"}, "The shared state (Redis) is lost"),
        ({"limits": "local"}, "Limits of keys are not shared"),
        ({"limits": "refusing"}, "requests of limited keys are refused"),
        ({"workers": {"total": 2, "healthy": 0}}, "No worker takes requests"),
        ({"processes": {"total": 4, "missing": [2]}}, "1 of 4 controller processes did not answer (#2)"),
    ],
)
async def test_what_is_degraded_is_said_above_all_figures(
    whole_system: System, visit: Visitor, change: dict[str, Any], words: str
) -> None:
    page = (await operate(visit, whole_system)).page

    async def lose(route: Route) -> None:
        response = await route.fetch()
        await route.fulfill(response=response, json=await response.json() | change)

    await expect(page.locator("#notice")).to_be_hidden()
    await page.route("**/admin/stats?*", lose)
    await expect(page.locator("#notice")).to_contain_text(words)
    await page.unroute_all(behavior="wait")
    await expect(page.locator("#notice")).to_be_hidden()


async def test_the_admin_key_is_asked_for_and_kept_in_the_tab_only(whole_system: System, visit: Visitor) -> None:
    visitor = await visit(whole_system.url + "/dashboard")
    visitor.expected = [r"status of 401"]
    page = visitor.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
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
    assert not [url for url in asked if "operator" in url]
    await page.reload()  # asked for once
    await expect(page.locator("#board")).to_be_visible()
    await expect(page.locator("#key-panel")).to_be_hidden()


async def test_without_an_admin_key_the_page_shows_and_does_not_offer_to_act(
    lone_controller: Callable[..., Process], visit: Visitor
) -> None:
    page = (await visit(lone_controller().url + "/dashboard")).page
    await expect(page.locator("#board")).to_be_visible()
    await expect(page.get_by_role("button", name=re.compile("drain"))).to_have_count(0)


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (False, 390), (True, 390), (True, 820)])
async def test_the_dashboard_fits_its_window(whole_system: System, visit: Visitor, dark: bool, width: int) -> None:
    await ask(whole_system, stream=True, max_tokens=40)
    visitor = await operate(visit, whole_system, dark=dark, width=width, height=900)
    await expect(visitor.page.locator("#workers tbody tr")).to_have_count(2)
    await visitor.shoot(f"dashboard-{'dark' if dark else 'light'}-{width}", whole=True)
    assert await visitor.page.evaluate(FITS)
