"""docs/observability.md names each metric of the controller, and no other."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"


def documented(section: str) -> set[str]:
    text = DOCUMENT.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([a-z0-9_:]+)(?:\{[a-z_,]+\})?` \|", text, re.MULTILINE))


def exposed(text: str) -> set[str]:
    names = re.findall(r"^# TYPE (\S+) \w+$", text, re.MULTILINE)
    return {name for name in names if not name.endswith("_created")}  # moments that the client library adds


async def test_the_document_names_what_a_controller_exposes(client, start_worker):
    await start_worker("w1", client)
    await client.chat()
    names = exposed((await client.get("/metrics"))[1])
    assert len(names) > 30
    assert documented("Metrics of a controller") == names
