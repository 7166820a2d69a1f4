"""One running system that all tests here share, and OpenAI's own client in front of it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion

MAX_BODY = 2_000_000
# How `ask` asks unless told otherwise.
GREEDY = {"temperature": 0, "max_tokens": 16, "extra_body": {"ignore_eos": True}}
CLIENT = {"max_retries": 0, "timeout": 120.0}


# Keys beside the one of everyday, and what their lines in the file of keys say.
OTHER_KEYS = {
    "key-of-another-model": {"name": "elsewhere", "models": ["other-*"]},
    "key-of-few-requests": {"name": "few", "requests_per_minute": 1},
    "key-of-yesterday": {"name": "yesterday", "expires": "2001-01-01T00:00:00Z"},
}


@pytest.fixture(scope="session")
def running(running_system: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A controller with two workers; pictures may be fetched from this machine, where the tests have theirs."""
    keys = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    lines = [
        json.dumps({"sha256": hashlib.sha256(key.encode()).hexdigest(), **entry}) for key, entry in OTHER_KEYS.items()
    ]
    keys.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    # Small caches, which are soon full: what grows afterwards is a leak.
    caches = {"kv_cache_bytes": 8_000_000, "image_cache_bytes": 2_000_000, "feature_cache_bytes": 1_000_000}
    from_here = {"media_allow_private": True, "media_ports": "*"}
    with running_system({**from_here, "max_body_bytes": MAX_BODY, "keys_file": keys}, caches) as system:
        yield system


@pytest.fixture(scope="session")
def client(running: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key=running.key, **CLIENT) as client:
        yield client


@pytest.fixture
async def async_client(running: Any) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key=running.key, **CLIENT) as client:
        yield client


@pytest.fixture
def ask(running: Any, client: OpenAI) -> Callable[..., ChatCompletion]:
    """Sends the parts of one user message; a str is text."""

    def ask(*parts: Any, **fields: Any) -> ChatCompletion:
        content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
        messages: Any = [{"role": "user", "content": content}]
        return client.chat.completions.create(**{"model": running.model, "messages": messages, **GREEDY, **fields})

    return ask


@pytest.fixture(scope="session")
def picture_server(pictures: Any) -> Iterator[str]:
    """The address of a web server that has picture 7 at /7.png and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pictures.file(7) if self.path == "/7.png" else b"nothing here"
            self.send_response(200 if self.path == "/7.png" else 404)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
