"""Keys, tenants and deadlines through a real controller and real workers."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.auth.keys_file import new_key

pytestmark = pytest.mark.timeout(400)  # the first test waits for the system

PROMPT = "a long story that two tenants tell word for word the same " * 4


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    file = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    made = {name: new_key(file, name) for name in ("acme", "other")}
    made["same"] = new_key(file, "same", tenant="acme")
    made["few"] = new_key(file, "few", requests_per_minute=2)
    return file, made


@pytest.fixture(scope="module")
def system(running_system: Any, keys: tuple[Path, dict[str, str]]) -> Iterator[Any]:
    with running_system({"keys_file": keys[0], "routing": "round-robin"}, {"max_running": 1}) as system:
        yield system


@pytest.fixture
def ask(system: Any, keys: tuple[Path, dict[str, str]]) -> Callable[..., tuple[int, Any]]:
    """(status, parsed answer; the last event's of a stream) for the key of this name."""

    def ask(name: str, headers: dict[str, str] | None = None, **fields: Any) -> tuple[int, Any]:
        body = {"model": system.model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2, **fields}
        sent = {"Authorization": f"Bearer {keys[1][name]}", "Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(system.url + "/v1/chat/completions", json.dumps(body).encode(), sent)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                text = response.read().decode()
                events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
                return response.status, json.loads(events[-1] if fields.get("stream") else text)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    return ask


def cached(answer: tuple[int, Any]) -> int:
    assert answer[0] == 200, answer
    return int(answer[1]["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_a_tenant_finds_its_own_prompts_in_the_cache_and_no_others(ask: Any) -> None:
    assert [cached(ask("acme")) > 0 for _ in range(4)] == [False, False, True, True]  # two workers take turns
    assert [cached(ask("same")) > 0 for _ in range(2)] == [True, True]
    assert [cached(ask("other")) > 0 for _ in range(4)] == [False, False, True, True]
    assert [cached(ask("other", {"X-Tephra-Tenant": "name:acme"}, cache_salt="x")) > 0 for _ in range(2)] == [False] * 2


def test_a_key_is_held_to_its_requests_a_minute(ask: Any) -> None:
    assert [ask("few")[0] for _ in range(3)] == [200, 200, 429]


def test_what_runs_over_its_time_is_ended_at_the_worker_too(ask: Any, system: Any, eventually: Any) -> None:
    long = {"max_tokens": 1500, "ignore_eos": True}
    status, answer = ask("acme", {"X-Request-Timeout": "0.6"}, **long)
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    status, event = ask("acme", {"X-Request-Timeout": "1.5"}, stream=True, **long)
    assert event["error"]["code"] == "deadline_exceeded"
    eventually(system.idle, "the workers are idle again")
