"""The document's examples before real workers: they are answered, in the shapes that the document says."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.timeout(400)  # the first test waits for the system


def test_real_workers_answer_every_example_in_the_documented_shape(running: Any, check_documented: Any) -> None:
    document = running.get("/openapi.json")

    def check(schema: dict[str, Any], text: str) -> None:
        check_documented(document, schema, json.loads(text))

    whole = streamed = 0
    for path, methods in document["paths"].items():
        operation = methods.get("post", {})
        if operation.get("security", [{}])[0] != {"ApiKey": []}:
            continue
        content = operation["responses"]["200"]["content"]
        for name, example in operation["requestBody"]["content"]["application/json"]["examples"].items():
            answer = httpx.post(
                running.url + path,
                json={**example["value"], "model": running.model},
                headers={"Authorization": f"Bearer {running.key}"},
                timeout=120,
            )
            assert answer.status_code == 200, (path, name, answer.text)
            if answer.headers["content-type"] == "application/json":
                check(content["application/json"]["schema"], answer.text)
                whole += 1
                continue
            end, piece = content["text/event-stream"]["schema"]["properties"]["data"]["anyOf"]
            chunk_schema, _ = piece["contentSchema"]["anyOf"]
            events = [line for line in answer.text.splitlines() if line.startswith("data:")]
            *chunks, done = [event.removeprefix("data:").strip() for event in events]
            assert chunks and done == end["const"]
            for chunk in chunks:
                check(chunk_schema, chunk)
            streamed += 1
    assert whole > 15 and streamed >= 2
