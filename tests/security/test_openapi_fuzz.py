"""Whatever fits the OpenAPI document, and whatever does not, is answered as the document says, and never with a fault.

schemathesis makes the requests; they go over the public port of real controllers, whose worker reads requests by the
schema as ours do. The same requests every time, few enough for every run; `make fuzz` sends many and new ones:

    TEPHRA_FUZZ_EXAMPLES=1000 TEPHRA_FUZZ_SEED=7 pytest tests/security/test_openapi_fuzz.py
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis
import pytest
import requests
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, strategies
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.api.openapi import OPERATIONS
from server.api.openapi.operation import Operation
from server.controller import Controller
from server.listen import ControllerServer, bind
from server.protocol.openai import TokenizeRequest
from server.settings import Settings
from server.state import EmbeddedValkey

EXAMPLES = int(os.environ.get("TEPHRA_FUZZ_EXAMPLES", "12"))  # requests of each kind to each operation
SEED = int(os.environ.get("TEPHRA_FUZZ_SEED", "1"))
KEY, ADMIN, SECRET, MODEL, VERSION = "a-clients-key", "the-admin-key", "the-workers-secret", "demo", "v1"
# A key with limits that nobody reaches here: its answers tell what is left of them.
LIMITED = {
    "name": "fuzz",
    "sha256": hashlib.sha256(KEY.encode()).hexdigest(),
    "requests_per_minute": 1_000_000,
    "images_per_minute": 1_000_000,
}
KEYS = {"client": KEY, "admin": ADMIN, "admin_or_local": ADMIN, "worker": SECRET, "none": ""}
CARD = {
    "name": MODEL,
    "version": VERSION,
    "context_length": 4096,
    "created": 1,
    "image": {"tile": 28, "grid": 2, "canvases": [[56, 28], [28, 56], [56, 56]]},
}
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OF_CLIENTS = [one for one in OPERATIONS if one.key == "client"]
OF_OTHERS = [one for one in OPERATIONS if one.key != "client"]

pytestmark = pytest.mark.timeout(120 + 3 * EXAMPLES)


@dataclass(frozen=True)
class Port:
    url: str
    schema: Any
    session: requests.Session
    has_worker: bool

    def send(self, operation: Operation, case: Case, *checks: Any) -> None:
        """Whatever the answer is, it must be one that the document describes."""
        key = KEYS[operation.key]
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = case.call(base_url=self.url, session=self.session, headers=headers, timeout=30)
        case.validate_response(answer, checks=[*CHECKS, *checks])
        if answer.status_code < 400:
            return
        documented = case.operation.definition.raw["responses"][str(answer.status_code)]
        assert answer.json()["error"]["code"] in documented["x-error-codes"], answer.text
        if answer.status_code == 504:
            assert "X-Request-Timeout" in case.headers, "the client itself may give a request no time"
        elif answer.status_code >= 500:
            assert answer.status_code == 503 and not self.has_worker, answer.text


class _Served:
    """A controller on a port of its own, in a thread."""

    def __init__(self, redis_url: str, keys_file: Path, handler: Any) -> None:
        self._redis_url = redis_url
        self._keys_file = keys_file
        self._handler = handler
        self._url: Future[str] = Future()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> str:
        self._thread.start()
        return self._url.result(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:
            self._url.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        settings = Settings(
            port=0,
            redis_url=self._redis_url,
            worker_secret=SECRET,
            keys_file=str(self._keys_file),
            admin_key=ADMIN,
            lease_seconds=3600.0,  # nobody's heart beats here
            shutdown_seconds=1.0,
            media_schemes="data",
        )
        server = ControllerServer(Controller(settings), bind(settings.host, settings.port))
        await server.start()
        runner = await self._join(server.url) if self._handler else None
        self._url.set_result(server.url)
        await self._stop.wait()
        server.stop()
        await server.wait()
        if runner is not None:
            await runner.cleanup()

    async def _join(self, url: str) -> web.AppRunner:
        app = web.Application(client_max_size=1 << 26)
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
            app.router.add_post(path, self._handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        registration = {
            "worker_id": "fuzzed",
            "url": f"http://127.0.0.1:{runner.addresses[0][1]}",
            "model": CARD,
            "engine": "native",
            "device": "cpu",
            "max_running": 8,
            "started_at": 1.0,
        }
        headers = {"Authorization": f"Bearer {SECRET}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/internal/workers", json=registration, headers=headers) as answer,
        ):
            assert answer.status == 200, await answer.text()
        return runner


@contextmanager
def _port(folder: Path, handler: Any = None) -> Iterator[Port]:
    keys_file = folder / "keys.jsonl"
    keys_file.write_text(json.dumps(LIMITED) + "\n", encoding="utf-8")
    with ExitStack() as stack:
        valkey = EmbeddedValkey()
        valkey.start()
        stack.callback(valkey.stop)
        served = _Served(valkey.url, keys_file, handler)
        url = served.start()
        stack.callback(served.stop)
        session = stack.enter_context(requests.Session())
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        yield Port(url, schema, session, handler is not None)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, answer_as_documented: Any) -> Iterator[Port]:
    """What clients reach: a controller with a worker."""
    with _port(tmp_path_factory.mktemp("served"), answer_as_documented) as port:
        yield port


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """What operators and workers reach; what they do there meets no client."""
    with _port(tmp_path_factory.mktemp("operated")) as port:
        yield port


@pytest.fixture(scope="module")
def deserted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """A controller that no worker has joined."""
    with _port(tmp_path_factory.mktemp("deserted")) as port:
        yield port


@pytest.fixture(scope="module", autouse=True)
def hypothesis_as_it_was() -> Iterator[None]:
    """schemathesis patches it, after which failures of other tests would not tell their arguments."""
    from hypothesis import core
    from hypothesis.internal.conjecture import engine
    from hypothesis.strategies._internal import collections

    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (core, "RepresentationPrinter"),
            (core, "BUFFER_SIZE"),
            (engine, "BUFFER_SIZE"),
            (collections, "BUFFER_SIZE"),
        ):
            patch.setattr(module, name, getattr(module, name))
        yield


def _aimed(operation: Operation, case: Case, *, stream: bool) -> Case:
    """At what is served, of which made-up names would be nothing, and with time for an answer."""
    if isinstance(case.body, dict) and "model" in case.body:
        case.body = {**case.body, "model": MODEL}
        if operation.answers[0].chunk is not None:
            case.body = {**case.body, "stream": stream}
        if operation.body is TokenizeRequest:  # takes either
            case.body = {"prompt": "x", **case.body} if "messages" not in case.body else {**case.body, "prompt": None}
    if "X-Model-Version" in case.headers:
        case.headers["X-Model-Version"] = VERSION
    if "X-Request-Timeout" in case.headers:
        case.headers["X-Request-Timeout"] = "30"
    return case


def _send_many(port: Port, operation: Operation, mode: GenerationMode, *checks: Any) -> int:
    """How many were sent."""
    described = port.schema.find_operation_by_label(operation.label)
    sent = 0

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
    )
    @hypothesis.given(case=described.as_strategy(generation_mode=mode), stream=strategies.booleans())
    def hold(case: Case, stream: bool) -> None:
        nonlocal sent
        port.send(operation, _aimed(operation, case, stream=stream) if mode.is_positive else case, *checks)
        sent += 1

    hold()
    return sent


def each(operations: Sequence[Operation]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("operation", operations, ids=lambda one: one.label)


def with_body(operations: Sequence[Operation]) -> list[Operation]:
    return [one for one in operations if one.body]


@each(OF_CLIENTS)
def test_what_fits_the_document_is_answered_by_it(served: Port, operation: Operation) -> None:
    assert _send_many(served, operation, GenerationMode.POSITIVE)


@each(with_body(OF_CLIENTS))
def test_what_does_not_fit_the_document_is_refused_by_it(served: Port, operation: Operation) -> None:
    assert _send_many(served, operation, GenerationMode.NEGATIVE, negative_data_rejection)


@each(OF_OTHERS)
def test_operators_workers_and_browsers_are_answered_by_the_document(operated: Port, operation: Operation) -> None:
    assert _send_many(operated, operation, GenerationMode.POSITIVE)


@each(with_body(OF_OTHERS))
def test_reports_that_make_no_sense_are_refused_by_the_document(operated: Port, operation: Operation) -> None:
    assert _send_many(operated, operation, GenerationMode.NEGATIVE, negative_data_rejection)


@each(OF_CLIENTS)
def test_without_a_worker_the_answer_is_503_at_most(deserted: Port, operation: Operation) -> None:
    assert _send_many(deserted, operation, GenerationMode.POSITIVE)
