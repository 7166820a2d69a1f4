"""On what terms a request runs: the time that it was given, and whose caches it may use."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

CHAT = "/v1/chat/completions"
SECRET = "the-workers-secret"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}


async def count(worker: Any, stage: str) -> float:
    text = (await worker.client.get("/metrics")).text
    name = f'tephra:deadlines_exceeded_total{{model_name="tiny",stage="{stage}"}} '
    return next((float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)), 0.0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_whose_time_runs_out_in_the_queue_is_504_and_cancelled(
    stage: Any, props: Any, stream: bool
) -> None:
    engine = props.engine(props.say("never"), hold=asyncio.Event())
    worker = await stage(engine=engine)
    response = await worker.client.post(CHAT, json=body(stream=stream), headers={"X-Request-Timeout": "0.1"})
    assert response.status_code == 504
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("deadline_exceeded", "server_error")
    assert "0.1 s" in error["message"]
    assert engine.cancelled == [engine.requests[0].id]
    assert await count(worker, "queue") == 1


async def test_a_stream_that_runs_over_ends_with_the_error_as_its_last_event(stage: Any, props: Any) -> None:
    engine = props.engine(None, hold=asyncio.Event())
    engine.hold.set()

    def stuck_after_three(request: Any) -> Any:
        for number, step in enumerate(props.play(*[70] * 10, ended=False)(request)):
            if number == 3:
                engine.hold.clear()
            yield step

    engine.script = stuck_after_three
    worker = await stage(engine=engine)
    headers = {"X-Request-Timeout": "1"}
    async with worker.client.stream("POST", CHAT, json=body(stream=True, max_tokens=10), headers=headers) as response:
        lines = [line async for line in response.aiter_lines()]
    assert response.status_code == 200
    assert json.loads([line for line in lines if line][-1].removeprefix("data: "))["error"]["code"] == (
        "deadline_exceeded"
    )
    assert engine.cancelled == [engine.requests[0].id]
    assert await count(worker, "answer") == 1


async def test_time_spent_on_pictures_counts_and_nothing_is_computed_when_it_is_over(stage: Any) -> None:
    class Slow:
        async def fetch(self, url: str) -> bytes:
            await asyncio.sleep(60)
            return b""

    worker = await stage(source=Slow())
    picture = [{"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}]
    asked = body(messages=[{"role": "user", "content": picture}])
    response = await worker.client.post(CHAT, json=asked, headers={"X-Request-Timeout": ".1"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert worker.engine.requests == []
    assert await count(worker, "intake") == 1


@pytest.mark.parametrize("value", ["soon", "-1", "0", "1e3", "nan", "inf", "0x10", "", "99999999"])
async def test_a_time_that_makes_no_sense_is_400(stage: Any, value: str) -> None:
    worker = await stage()
    response = await worker.client.post(CHAT, json=body(), headers={"X-Request-Timeout": value})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_timeout")
    assert worker.engine.requests == []


async def test_each_tenant_of_a_controller_has_caches_of_its_own(stage: Any) -> None:
    worker = await stage(worker_secret=SECRET)

    async def salt(tenant: str | None, cache_salt: str | None = None) -> str:
        headers = {"Authorization": f"Bearer {SECRET}"} | ({"X-Tephra-Tenant": tenant} if tenant else {})
        response = await worker.client.post(CHAT, json=body(cache_salt=cache_salt), headers=headers)
        assert response.status_code == 200
        return str(worker.engine.requests[-1].cache_salt)

    acme, other = await salt("name:acme"), await salt("name:other")
    assert acme and other and acme != other
    assert await salt("name:acme") == acme
    own = await salt("name:acme", "mine")
    assert own not in (acme, await salt("name:other", "mine"))
    assert await salt(None) == ""
    assert await salt(None, acme) != await salt("name:acme", acme)  # the salt of one is no way into the other's
    assert await salt("name:acm", "e\0") != await salt("name:acme", "\0")


async def test_a_client_cannot_name_its_tenant(stage: Any) -> None:
    alone = await stage()
    await alone.client.post(CHAT, json=body(), headers={"X-Tephra-Tenant": "name:acme"})
    assert alone.engine.requests[-1].cache_salt == ""
    keyed = await stage(api_keys=("key",), worker_secret=SECRET)
    headers = {"Authorization": "Bearer key", "X-Tephra-Tenant": "name:acme"}
    assert (await keyed.client.post(CHAT, json=body(), headers=headers)).status_code == 200
    assert keyed.engine.requests[-1].cache_salt == ""


async def test_pictures_are_decoded_apart_for_each_tenant(stage: Any, props: Any) -> None:
    worker = await stage(worker_secret=SECRET)
    asked = body(messages=[{"role": "user", "content": [props.picture_part()]}])
    for tenant in ("a", "a", "b"):
        headers = {"Authorization": f"Bearer {SECRET}", "X-Tephra-Tenant": tenant}
        assert (await worker.client.post(CHAT, json=asked, headers=headers)).status_code == 200
    first, again, foreign = (request.images[0] for request in worker.engine.requests)
    assert again is first
    assert foreign is not first
