"""The playground as a person uses it: pictures in, a streamed answer with its figures out, errors in words."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from playwright.async_api import Page, expect

if TYPE_CHECKING:
    from tests.e2e.browser.conftest import Visitor
    from tests.fixtures.system import Process

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

READY = "#model:not([disabled])"
# Notes every state of the answers' text, so that a test can tell a stream from a text that came at once.
RECORD_TEXT = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const text = document.querySelector('.answer:last-child .text')?.textContent ?? '';
    if (text && text !== window.seen.at(-1)) window.seen.push(text);
  }).observe(document.getElementById('conversation'), {subtree: true, childList: true, characterData: true});
}"""
# A file that arrives by drop or paste, which only the page itself can make.
DROP = """([bytes, name]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/png'}));
  for (const kind of ['dragenter', 'dragover', 'drop']) {
    document.querySelector('main').dispatchEvent(
      new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
  }
}"""
PASTE = """(bytes) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], 'pasted.png', {type: 'image/png'}));
  document.getElementById('question').dispatchEvent(
    new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true, cancelable: true}));
}"""


def png(width: int, height: int, colour: str = "crimson") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def file(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": data}


def bodies(page: Page) -> list[dict[str, Any]]:
    """Fills with the chat requests that the page sends."""
    sent: list[dict[str, Any]] = []

    def note(request: Any) -> None:
        if request.url.endswith("/v1/chat/completions"):
            sent.append(json.loads(request.post_data))

    page.on("request", note)
    return sent


def images(body: dict[str, Any]) -> list[Image.Image]:
    urls = [
        part["image_url"]["url"]
        for message in body["messages"]
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


async def set_up(page: Page, *, tokens: int = 24, temperature: str = "0") -> None:
    await page.wait_for_selector(READY)
    await page.click("#settings-toggle")
    await page.fill("#max_tokens", str(tokens))
    await page.fill("#temperature", temperature)
    await page.click("#settings-toggle")


async def ask(page: Page, question: str) -> None:
    await page.fill("#question", question)
    await page.press("#question", "Enter")


async def done(page: Page) -> None:
    await expect(page.locator("#ask")).to_be_visible()
    await expect(page.locator(".answer.live")).to_have_count(0)


def figure(page: Page, name: str) -> Any:
    return page.locator(f".answer:last-child [data-figure={name}] dd")


async def test_a_sample_picture_is_asked_about_and_the_answer_streams_in_with_its_figures(
    system: str, visit: Visitor
) -> None:
    visitor = await visit(system)
    page = visitor.page
    await set_up(page, tokens=200)
    await visitor.shoot("welcome-light")
    sent = bodies(page)
    await page.evaluate(RECORD_TEXT)
    await page.get_by_role("button", name="What word is printed here?").click()
    await expect(page.locator("#tray li")).to_have_count(1)
    await expect(page.locator("#question")).to_be_focused()
    await page.keyboard.press("Enter")
    await done(page)

    assert [image.size for image in images(sent[0])] == [(480, 360)]
    assert sent[0]["messages"][0]["content"][-1] == {"type": "text", "text": "What word is printed here?"}
    seen = await page.evaluate("window.seen")
    assert len(seen) >= 2 and all(late.startswith(early) for early, late in itertools.pairwise(seen))
    await expect(figure(page, "tokens-out")).to_have_text("200")
    await expect(figure(page, "tokens-in")).to_have_text(re.compile(r"^[1-9][\d,]*$"))
    await expect(figure(page, "first-token")).to_have_text(re.compile(r"^(< )?[\d.]+ m?s$"))
    await expect(figure(page, "tokens-per-second")).to_have_text(re.compile(r"^[\d.,]+K?$"))
    await expect(figure(page, "version")).to_have_text(re.compile(r"\S"))
    await expect(figure(page, "request")).to_have_text(re.compile(r"\S"))
    await expect(figure(page, "ended")).to_have_text("cut at the token limit")
    await visitor.shoot("answer-light")


async def test_pictures_come_in_by_choosing_dropping_and_pasting_and_go_out_again(system: str, visit: Visitor) -> None:
    page = (await visit(system)).page
    await set_up(page)
    sent = bodies(page)
    await page.set_input_files("#files", [file("one.png", png(40, 30)), file("two.png", png(50, 30))])
    await expect(page.locator("#tray li")).to_have_count(2)
    await page.evaluate(DROP, [list(png(70, 30)), "dropped.png"])
    await expect(page.locator("#tray li")).to_have_count(3)
    await page.evaluate(PASTE, list(png(60, 30)))
    await expect(page.locator("#tray li")).to_have_count(4)
    await page.get_by_role("button", name="Remove two.png").click()
    await page.get_by_role("button", name="Remove dropped.png").click()
    await expect(page.locator("#tray .name")).to_have_text(["one.png", "pasted.png"])
    await ask(page, "What are these?")
    await done(page)
    assert [image.size for image in images(sent[0])] == [(40, 30), (60, 30)]
    await expect(page.locator("#tray")).to_be_hidden()
    await expect(page.locator(".question img")).to_have_count(2)


async def test_a_file_that_is_no_picture_is_named_and_left_out(system: str, visit: Visitor) -> None:
    page = (await visit(system)).page
    await page.wait_for_selector(READY)
    await page.set_input_files("#files", [file("broken.png", b"no picture at all"), file("good.png", png(20, 20))])
    await expect(page.locator("#notice")).to_have_text("broken.png is no picture that this browser can read.")
    await expect(page.locator("#tray .name")).to_have_text(["good.png"])


async def test_a_picture_above_the_limit_is_made_smaller_in_the_browser_and_the_page_says_so(
    system: str, visit: Visitor
) -> None:
    page = (await visit(system)).page
    await set_up(page, tokens=2)
    sent = bodies(page)
    await page.set_input_files("#files", [file("wide.png", png(3000, 1000)), file("exact.png", png(2048, 64))])
    await expect(page.locator("#tray .size")).to_have_text(["2048 × 683", "2048 × 64"])
    await expect(page.locator("#tray .note")).to_have_text(["made smaller here, from 3000 × 1000"])
    await ask(page, "What is it?")
    await done(page)
    assert [image.size for image in images(sent[0])] == [(2048, 683), (2048, 64)]


async def test_a_second_question_keeps_the_picture_and_the_first_answer(system: str, visit: Visitor) -> None:
    page = (await visit(system)).page
    await set_up(page, tokens=8)
    sent = bodies(page)
    await page.set_input_files("#files", [file("one.png", png(40, 30))])
    await ask(page, "What is it?")
    await done(page)
    await ask(page, "And its colour?")
    await done(page)
    answer = await page.locator(".answer .text").first.text_content()
    assert [message["role"] for message in sent[1]["messages"]] == ["user", "assistant", "user"]
    assert sent[1]["messages"][1]["content"] == answer
    assert [image.size for image in images(sent[1])] == [(40, 30)]
    await page.get_by_role("button", name="Start over").click()
    await expect(page.locator("#welcome")).to_be_visible()
    await ask(page, "Hello?")
    await done(page)
    assert sent[2]["messages"] == [{"role": "user", "content": "Hello?"}]


@pytest.mark.parametrize("way", ["button", "escape"])
async def test_stop_ends_the_answer_and_keeps_what_came(system: str, visit: Visitor, way: str) -> None:
    page = (await visit(system)).page
    await set_up(page, tokens=4000)
    await page.click("#settings-toggle")
    await page.fill("#max_tokens", "")
    ended: list[str] = []
    page.on("requestfailed", lambda request: ended.append(request.url))
    await ask(page, "Count for ever.")
    await expect(page.locator(".answer.live .text")).to_have_text(re.compile(r"\S"))
    await (page.click("#stop") if way == "button" else page.keyboard.press("Escape"))
    await done(page)
    await expect(figure(page, "ended")).to_have_text("stopped by you")
    await expect(page.locator(".answer .text")).to_have_text(re.compile(r"\S"))
    assert [url for url in ended if url.endswith("/v1/chat/completions")], "the request itself must be aborted"


async def test_the_question_keeps_the_focus_through_an_answer(system: str, visit: Visitor) -> None:
    page = (await visit(system)).page
    await set_up(page, tokens=2)
    await page.fill("#question", "Hello?")
    await page.click("#ask")
    await done(page)
    await expect(page.locator("#question")).to_be_focused()


async def test_shift_and_enter_make_a_new_line(system: str, visit: Visitor) -> None:
    page = (await visit(system)).page
    await set_up(page, tokens=2)
    sent = bodies(page)
    await page.fill("#question", "one")
    await page.press("#question", "Shift+Enter")
    await page.keyboard.type("two")
    await page.keyboard.press("Enter")
    await done(page)
    assert sent[0]["messages"][0]["content"] == "one\ntwo"


async def test_settings_are_sent_and_what_was_left_empty_is_not(system: str, visit: Visitor) -> None:
    page = (await visit(system)).page
    await page.wait_for_selector(READY)
    sent = bodies(page)
    await page.click("#settings-toggle")
    await page.fill("#temperature", "0.5")
    await page.fill("#max_tokens", "3")
    await page.fill("#seed", "7")
    await ask(page, "Hello?")
    await done(page)
    assert sent[0].items() >= {"temperature": 0.5, "max_tokens": 3, "seed": 7}.items()
    assert "top_p" not in sent[0]


async def test_what_the_server_refuses_is_shown_in_its_words_and_the_next_question_leaves_it_out(
    system: str, visit: Visitor
) -> None:
    visitor = await visit(system)
    visitor.expected = [r"status of 400"]
    page = visitor.page
    await set_up(page, tokens=2, temperature="9")
    sent = bodies(page)
    await ask(page, "Too hot?")
    problem = page.locator(".answer .problem")
    await expect(problem).to_contain_text("The server refused this request.")
    await expect(problem).to_contain_text("temperature")
    await visitor.shoot("error-light")
    await page.click("#settings-toggle")
    await page.fill("#temperature", "0")
    await ask(page, "Better?")
    await done(page)
    assert [message["content"] for message in sent[1]["messages"]] == ["Better?"]
    await expect(page.locator(".answer:last-child .text")).to_have_text(re.compile(r"\S"))


async def test_ask_again_repeats_the_question_in_place(system: str, visit: Visitor) -> None:
    page = (await visit(system)).page
    await set_up(page, tokens=6)
    sent = bodies(page)
    await ask(page, "Hello?")
    await done(page)
    await page.get_by_role("button", name="Ask again").click()
    await done(page)
    assert sent[1] == sent[0]
    await expect(page.locator(".turn")).to_have_count(2)


async def test_an_answer_that_breaks_off_is_kept_and_said_to_be_broken(system: str, visit: Visitor) -> None:
    page = (await visit(system)).page
    await set_up(page)
    piece = {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "Half an"}, "finish_reason": None}]}
    await page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(piece)}\n\n"),
    )
    await ask(page, "Hello?")
    await expect(page.locator(".answer .problem")).to_contain_text("The answer broke off before its end.")
    await expect(page.locator(".answer .text")).to_have_text("Half an")


async def test_the_last_request_can_be_taken_along_as_python_and_as_curl(
    system: str, visit: Visitor, tmp_path: Path
) -> None:
    page = (await visit(system)).page
    await set_up(page, tokens=4)
    sent = bodies(page)
    await page.get_by_role("button", name="What is in this picture?").click()
    await page.click("#ask")
    await done(page)
    answer = await page.locator(".answer .text").text_content()
    clipboard = "navigator.clipboard.readText()"

    await page.get_by_role("button", name="Copy as Python").click()
    await expect(page.locator("#status")).to_have_text("Copied as Python.")
    program = tmp_path / "asked.py"
    program.write_text(await page.evaluate(clipboard), encoding="utf-8")
    run = subprocess.run([sys.executable, program], capture_output=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr.decode()
    assert run.stdout.decode().removesuffix("\n") == answer

    await page.get_by_role("button", name="Copy as curl").click()
    await expect(page.locator("#status")).to_have_text("Copied as curl.")
    command = await page.evaluate(clipboard)
    assert command.startswith(f"curl -sN {system}/v1/chat/completions ")
    assert json.loads(re.search(r"<<'JSON'\n(.*)\nJSON\n", command, re.S)[1]) == sent[0]  # type: ignore[index]


async def test_a_missing_key_is_asked_for_kept_in_the_tab_only_and_used(
    lone_controller: Callable[..., Process], visit: Visitor
) -> None:
    visitor = await visit(lone_controller(api_keys="right-key").url)
    visitor.expected = [r"status of 401"]
    page = visitor.page
    await expect(page.locator("#notice")).to_have_text("This server asks for an API key.")
    await expect(page.get_by_label("API key")).to_be_focused()
    await page.keyboard.type("wrong-key")
    await page.keyboard.press("Enter")
    await expect(page.locator("#notice")).to_have_text("The server did not accept this API key.")
    await visitor.shoot("key-light")
    await page.get_by_label("API key").fill("right-key")
    await page.click("#key-use")
    await expect(page.locator("#notice")).to_contain_text("No worker has joined yet")
    await expect(page.locator("#key-panel")).to_be_hidden()
    assert await page.evaluate("[...Object.values(sessionStorage)]") == ["right-key"]
    assert await page.evaluate("localStorage.length") == 0
    assert "right-key" not in await page.content()
    await page.click("#settings-toggle")
    await page.get_by_role("button", name="Forget the API key").click()
    assert await page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize(("dark", "width"), [(False, 390), (True, 390), (True, 1280), (False, 820)])
async def test_the_page_fits_its_window(system: str, visit: Visitor, dark: bool, width: int) -> None:
    visitor = await visit(system, dark=dark, width=width, height=844)
    page = visitor.page
    name = f"{'dark' if dark else 'light'}-{width}"
    await set_up(page)
    await visitor.shoot(f"welcome-{name}")
    await page.get_by_role("button", name="How many stars are there?").click()
    await page.click("#settings-toggle")
    await visitor.shoot(f"compose-{name}")
    await page.click("#settings-toggle")
    await page.click("#ask")
    await done(page)
    await visitor.shoot(f"answer-{name}")
    assert await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    ask_box = await page.locator("#ask").bounding_box()
    assert ask_box is not None and ask_box["x"] + ask_box["width"] <= width


async def test_every_control_has_a_name(system: str, visit: Visitor) -> None:
    page = (await visit(system)).page
    await set_up(page)
    nameless = await page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea, a')]
          .filter((node) => !(node.labels?.length || node.ariaLabel || node.textContent.trim()))
          .map((node) => node.outerHTML)"""
    )
    assert nameless == []
