"""How the pages read server-sent events, tried in the browser that runs the code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.browser.conftest import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

READ = """async (pieces) => {
  const { events } = await import('/assets/sse.js');
  const stream = new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(new Uint8Array(piece));
      controller.close();
    },
  });
  const read = [];
  for await (const data of events(stream)) read.push(data);
  return read;
}"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: one\n\ndata: two\n\n", ["one", "two"]),
        ("data:none\n\ndata:  two\n\n", ["none", " two"]),
        ("data: one\r\n\r\ndata: two\r\n\r\n", ["one", "two"]),
        ("data: one\r\rdata: two\r\r:\r", ["one", "two"]),
        ("data: first\ndata: second\n\n", ["first\nsecond"]),
        (": ping\n\nevent: note\nid: 7\nretry: 10\ndata: one\n\n", ["one"]),
        ("data\n\n", [""]),
        ("data: whole\n\ndata: cut off", ["whole"]),
        ("\ufeffdata: después 🌋 ciò\n\n", ["después 🌋 ciò"]),
    ],
)
async def test_events_are_read_whole_wherever_the_network_cuts_them(
    system: str, visit: Visitor, text: str, expected: list[str]
) -> None:
    page = (await visit(system)).page
    data = text.encode()
    for size in (1, 2, 3, 5, len(data)):
        pieces = [list(data[start : start + size]) for start in range(0, len(data), size)]
        assert await page.evaluate(READ, pieces) == expected, f"cut into pieces of {size} bytes"


async def test_a_line_without_an_end_is_given_up(system: str, visit: Visitor) -> None:
    page = (await visit(system)).page
    message = await page.evaluate(
        f"async () => ({READ})(Array(20).fill(Array(100_000).fill(97))).catch((error) => error.message)"
    )
    assert message == "The server sent a line without an end."
