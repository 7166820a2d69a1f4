"""What was done to systems of this kind, done to a whole one: a real controller with real workers, over its port.

docs/security.md names for each class of attack the tests that hold it; here are those that need all of the system.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import pickle
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.timeout(400)  # the first test waits for the system

ADMIN = "the-operators-key"
# What tells where a program keeps its things: addresses in memory, places in files, the names of its parts.
INSIDES = re.compile(
    r"0x[0-9a-f]{5,}|object at|Traceback|site-packages|\.py\b|<class|/home/|/tmp/|/root/", re.IGNORECASE
)

Ask = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def system(running_system: Any) -> Iterator[Any]:
    with running_system({"admin_key": ADMIN, "routing": "round-robin"}, {"image_cache_bytes": 2_000_000}) as system:
        yield system


@pytest.fixture
def send(system: Any) -> Ask:
    """(status, parsed answer) of a method, a path and a body, which may be bytes."""

    def send(method: str, path: str, body: Any = None, key: str = system.key) -> tuple[int, Any]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection = http.client.HTTPConnection(system.url.removeprefix("http://"), timeout=120)
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    return send


@pytest.fixture
def chat(send: Ask, system: Any) -> Ask:
    def chat(*content: Any, **fields: Any) -> tuple[int, Any]:
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        body = {"model": system.model, "messages": [{"role": "user", "content": parts}], "max_tokens": 2}
        return send("POST", "/v1/chat/completions", {**body, "temperature": 0, **fields})

    return chat


def image(data: bytes, **beside: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}, **beside}


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def inflating(kind: bytes) -> bytes:
    """A PNG of 64 by 64 with a chunk that inflates to 200 MB, or with as many pixels too many."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    bomb, pixels = zlib.compress(bytes(200_000_000), 9), zlib.compress(bytes(64 * (1 + 3 * 64)))
    before = {b"iCCP": b"profile\0\0", b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0", b"IDAT": b""}[kind]
    chunks = chunk(b"IDAT", bomb) if kind == b"IDAT" else chunk(kind, before + bomb) + chunk(b"IDAT", pixels)
    return b"\x89PNG\r\n\x1a\n" + head + chunks + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt", b"IDAT"])
def test_what_inflates_within_a_picture_takes_no_memory(system: Any, chat: Ask, pictures: Any, kind: bytes) -> None:
    for _ in system.workers:
        assert chat(pictures.part(1), "what?")[0] == 200
    before, bomb = {name: worker.resident for name, worker in system.workers.items()}, image(inflating(kind))
    for number in range(4):
        status, answer = chat(bomb, f"what? {number}")
        assert status == 200 or answer["error"]["code"] == "invalid_image", answer
    grown = [worker.resident - before[name] for name, worker in system.workers.items()]
    assert max(grown) < 100_000_000
    assert system.controller.resident < 1_000_000_000


def cached(answer: tuple[int, Any]) -> tuple[int, int]:
    """Tokens that came from a cache, and all of the prompt's."""
    assert answer[0] == 200, answer
    usage = answer[1]["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def test_the_same_pixels_in_another_shape_are_another_picture(system: Any, chat: Ask) -> None:
    """A digest of pixels alone would find the one where the other was asked about (CVE-2025-46722)."""
    pixels = random.Random(5).randbytes(3 * 112 * 56)
    wide, tall = (png(Image.frombytes("RGB", size, pixels)) for size in ((112, 56), (56, 112)))
    for _ in range(2 * len(system.workers)):
        known, length = cached(chat(image(wide), "what is to be seen here?"))
    assert known > length / 2
    known, length = cached(chat(image(tall), "what is to be seen here?"))
    assert known < length / 2


@pytest.mark.parametrize("name", ["uuid", "hash", "cache_key", "mm_hash", "multi_modal_uuids"])
def test_a_name_that_a_client_gives_a_picture_finds_no_other_one(
    system: Any, chat: Ask, pictures: Any, name: str
) -> None:
    """Whoever could name what caches know would have another's picture answered about, or put theirs in its place."""
    number = 100 + len(name)
    first, second = (image(pictures.file(n), **{name: "the same"}) for n in (number, number + 5))  # of one size
    for _ in range(2 * len(system.workers)):
        known, length = cached(chat(first, "what is to be seen?", **{name: "the same"}))
    assert known > length / 2
    known, length = cached(chat(second, "what is to be seen?", **{name: "the same"}))
    assert known < length / 2


def test_forms_that_blow_up_are_refused_while_others_are_answered(system: Any, chat: Ask) -> None:
    hostile = [
        {"guided_regex": "((a{1,1000}){1,1000}){1,1000}"},
        {"guided_regex": "(a?){64}" * 40},
        {"guided_grammar": "\n".join(f"r{n}: r{n + 1}" for n in range(4000))},
        {"guided_json": {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}] * 2}}}},
        {"guided_json": {"properties": {f"p{n}": {"type": "string", "pattern": "(.*a){9}"} for n in range(390)}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"minItems": 1e300}}}},
    ]
    with ThreadPoolExecutor(12) as pool:
        refused = [pool.submit(chat, "x", **fields) for fields in hostile * 2]
        answered = [pool.submit(chat, f"hello {number}") for number in range(6)]
        assert [future.result()[0] for future in answered] == [200] * 6
        statuses = {future.result()[0] for future in refused}
    assert statuses <= {200, 400, 429}
    assert chat("hello")[0] == 200


def test_no_error_tells_of_the_insides(system: Any, send: Ask, chat: Ask, pictures: Any) -> None:
    """Addresses in memory, of which an attacker of a decoder made use (CVE-2026-22778), least of all."""
    draw, seen = random.Random(3), 0
    whole = {kind: pictures.file(3, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")}
    asked: list[tuple[int, Any]] = []
    for kind in whole:
        for turn in range(8):
            broken = bytearray(whole[kind])
            for place in draw.sample(range(2, len(broken)), 6):
                broken[place] = draw.randrange(256)
            asked.append(chat(image(bytes(broken[: draw.randrange(8, len(broken))] if turn % 2 else broken))))
    path = "/v1/chat/completions"
    for body in (
        b"\xff",
        b"[" * 9999,
        b'{"a":' * 200 + b"1" + b"}" * 200,
        b'{"model": {"a": 1}}',
        b'"' + b"\\ud800" * 9,
    ):
        asked.append(send("POST", path, body))
    for fields in ({"guided_regex": "(?P<"}, {"tools": [{"type": []}]}, {"seed": []}, {"stop": {"a": "b"}}, {"n": {}}):
        asked.append(chat("x", **fields))
    asked += [send("POST", "/v1/detokenize", {"model": system.model, "tokens": [token]}) for token in (-1, 2**40)]
    asked += [send("POST", "/internal/workers", body, key=system.secret) for body in (b"\x80", {"worker_id": {}}, {})]
    for status, answer in asked:
        if status != 200:
            seen += 1
            assert 400 <= status < 500, answer
            assert not INSIDES.search(json.dumps(answer)), answer
    assert seen > 40


def test_a_pickle_is_no_request_anywhere(send: Ask, system: Any) -> None:
    """Whoever unpickled what came in would have run it (CVE-2026-15976, CVE-2026-3059)."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit('it ran')",)

    for protocol in (0, 2, 5):
        data = pickle.dumps(Bomb(), protocol)
        for path, key in (
            ("/v1/chat/completions", system.key),
            ("/v1/tokenize", system.key),
            ("/internal/workers", system.secret),
            ("/internal/workers/east/heartbeat", system.secret),
        ):
            assert send("POST", path, data, key)[0] == 400, path
    assert set(system.members()) == {"east", "west"}


def test_no_key_but_the_workers_secret_lets_a_worker_in(send: Ask, system: Any, chat: Ask) -> None:
    """A worker that anybody may register is sent everybody's prompts (CVE-2026-85695)."""
    model = {"name": system.model, "version": "v1", "context_length": 99, "created": 1}
    card = {"worker_id": "thief", "url": "http://127.0.0.1:9", "engine": "e", "device": "cpu", "max_running": 9}
    for key in ("", system.key, ADMIN, system.secret[:-1], system.secret + "s"):
        for method, path, body in (
            ("POST", "/internal/workers", {**card, "started_at": 1, "model": model}),
            ("POST", "/internal/workers", {**card, "worker_id": "east", "started_at": 1, "model": model}),
            ("POST", "/internal/workers/east/heartbeat", {"load": {"running": 0, "waiting": 0}}),
            ("DELETE", "/internal/workers/east", None),
        ):
            assert send(method, path, body, key=key)[0] == 401, (key, path)
    assert set(system.members()) == {"east", "west"}
    assert chat("hello")[0] == 200
