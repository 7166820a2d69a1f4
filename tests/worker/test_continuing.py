"""Streams that one worker begins and another carries on: what follows is what would have followed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
import torch

from model.checkpoint import load_checkpoint
from server.protocol.continuing import CONTINUE, MARK, RESUMABLE, Beginning, Continuation, HeldScore, Told
from worker.engine.config import EngineConfig
from worker.engine.native import NativeEngine
from worker.start import ModelFiles

SECRET = "between-controller-and-worker"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"at": {"enum": ["sea", "hill"]}}}},
}
PLACES = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "high": {"type": "boolean"}},
    "required": ["name", "high"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def loaded(checkpoint: Any) -> Any:
    return load_checkpoint(checkpoint, dtype=torch.float32)  # in which tokens do not depend on how the work was cut


@pytest.fixture
async def workers(stage: Any, loaded: Any) -> Any:
    """Two of the same version, with the tiny checkpoint's own random weights."""
    engines = [NativeEngine(loaded.model, EngineConfig(kv_cache_bytes=2**23, threads=1)) for _ in range(2)]
    for engine in engines:
        await engine.start()
    files = ModelFiles(loaded.config, loaded.prompter, loaded.preprocessor)
    yield [await stage(engine=engine, files=files, worker_secret=SECRET) for engine in engines]
    for engine in engines:
        await engine.stop()


class Stream:
    """A resumable stream, frame by frame: the lines for the controller, the data for the client."""

    def __init__(self, response: Any) -> None:
        assert response.status_code == 200, response.text
        assert response.headers[RESUMABLE] == "1"
        assert response.text.endswith("data: [DONE]\n\n")
        self.frames = [frame.encode() for frame in response.text.split("\n\n")[:-1] if frame != ":"]
        self.beginning: Beginning | None = None
        self.data: list[str] = []
        self.trails: list[list[Told]] = []
        for frame in self.frames:
            *lines, data = frame.splitlines()
            self.data.append(data.decode().removeprefix("data: "))
            self.trails.append([])
            for line in lines:
                assert line.startswith(MARK)
                content = line.removeprefix(MARK)
                if content.startswith(b"{"):
                    assert self.beginning is None
                    self.beginning = msgspec.json.decode(content, type=Beginning)
                else:
                    self.trails[-1].append(msgspec.json.decode(content, type=Told))

    @property
    def pieces(self) -> list[str]:
        """Of all frames, usage and the end mark: what a client gets. The caches' part in usage is each worker's own."""
        pieces = []
        for data in self.data:
            chunk = data if data == "[DONE]" else json.loads(data)
            if chunk != "[DONE]" and chunk.get("usage"):
                chunk["usage"]["prompt_tokens_details"].pop("cached_tokens")
            pieces.append(chunk)
        return pieces

    def broken_after(self, frames: int) -> Continuation:
        """What a controller knows that has read so many frames."""
        assert self.beginning is not None
        tokens: dict[int, list[int]] = {}
        last: dict[int, Told] = {}
        for told in (told for trail in self.trails[:frames] for told in trail):
            tokens.setdefault(told.index, []).extend(told.tokens)
            last[told.index] = told
        choices = [Told(index, tokens[index], told.held, told.ended) for index, told in last.items()]
        return Continuation(self.beginning, choices)


def headers(**more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json", RESUMABLE: "1", **more}


async def post(worker: Any, path: str, body: bytes, continuation: Continuation | None = None, **more: str) -> Any:
    if continuation is None:
        return await worker.client.post(path, content=body, headers=headers(**more))
    state = msgspec.json.encode(continuation)
    return await worker.client.post(path, content=state + body, headers=headers(**{CONTINUE: str(len(state)), **more}))


def request(path: str, **fields: Any) -> bytes:
    asked = {"prompt": "hello"} if path == TEXT else {"messages": [{"role": "user", "content": "hello"}]}
    return json.dumps({"model": "tiny", "stream": True, "max_tokens": 24, **asked, **fields}).encode()


USAGE = {"stream_options": {"include_usage": True}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": (CHAT, {"temperature": 0, **USAGE}),
    "seeded": (CHAT, {"seed": 7}),
    "without a seed": (CHAT, {"temperature": 1.5, **USAGE}),
    "several answers of several lengths": (CHAT, {"n": 3, "seed": 4, "stop": ["e", "a"], **USAGE}),
    "penalties": (CHAT, {"seed": 1, "frequency_penalty": 1.5, "presence_penalty": 1, "repetition_penalty": 1.8}),
    "log probabilities behind stop strings": (
        CHAT,
        {"seed": 3, "logprobs": True, "top_logprobs": 2, "stop": ["\x00\x01\x02", "zzzzzzzz"], "temperature": 1.4},
    ),
    "least tokens": (CHAT, {"seed": 5, "min_tokens": 20, "stop": ["a", "e", "i"], **USAGE}),
    "a form": (
        CHAT,
        {"seed": 2, "response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PLACES}}},
    ),
    "calls": (CHAT, {"seed": 6, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 80}),
    "several prompts": (TEXT, {"prompt": ["one", "two"], "n": 2, "seed": 9, "logprobs": 1, "max_tokens": 9}),
    "any token": (TEXT, {"temperature": 2, "seed": 8, "ignore_eos": True, "skip_special_tokens": False}),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_follows_is_what_would_have_followed_wherever_the_stream_broke(workers: Any, kind: str) -> None:
    path, fields = KINDS[kind]
    body = request(path, **fields)
    first, second = workers
    whole = Stream(await post(first, path, body))
    assert len(whole.frames) > 8
    last = len(whole.frames) - (2 if "stream_options" in fields else 1)  # behind it only the end mark is missing
    for cut in [*range(1, last, max(1, last // 12)), last]:
        rest = Stream(await post(second, path, body, whole.broken_after(cut)))
        # Where several answers are under way their frames may come in another order: each answer's own stay in theirs.
        assert alike(by_choice(rest.pieces), by_choice(whole.pieces[cut:])), cut
        assert rest.pieces[-1] == "[DONE]"


def alike(one: Any, other: Any) -> bool:
    """The same but for the last bits of log probabilities, and for the ids of calls, which are drawn anew."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            alike(value, other[key]) or (key == "id" and value.startswith("call_")) for key, value in one.items()
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == pytest.approx(other, abs=1e-4) if isinstance(one, float) else one == other)


def by_choice(pieces: list[Any]) -> dict[int, list[Any]]:
    """Chunks by their choice; -1: usage."""
    sorted_out: dict[int, list[Any]] = {}
    for piece in pieces:
        if piece != "[DONE]":
            index = piece["choices"][0]["index"] if piece["choices"] else -1
            sorted_out.setdefault(index, []).append(piece)
    return sorted_out


async def test_a_character_that_was_cut_in_two_arrives_whole(stage: Any, props: Any) -> None:
    tokens = props.tokenizer.encode("ab🙂cd", add_special_tokens=False)

    def say(request: Any) -> Any:
        left = tokens[len(request.answer) :]
        return props.play(*left)(request)

    workers = [await stage(say, worker_secret=SECRET) for _ in range(2)]
    body = request(CHAT)
    whole = Stream(await post(workers[0], CHAT, body))
    for cut in range(1, len(whole.frames)):
        rest = Stream(await post(workers[1], CHAT, body, whole.broken_after(cut)))
        assert rest.pieces == whole.pieces[cut:]
    # Tokens whose characters were still in the making when the worker died can also have been told of.
    state = whole.broken_after(3)
    half = Told(0, [*state.choices[0].tokens, *tokens[2:4]])
    rest = Stream(await post(workers[1], CHAT, body, Continuation(state.beginning, [half])))
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in rest.pieces[:-1]) == "🙂cd"


async def test_only_the_controller_is_told_and_heard(stage: Any, props: Any) -> None:
    worker = await stage(props.say("Hello."), worker_secret=SECRET, api_keys=("a-clients-key",))
    client = {"Authorization": "Bearer a-clients-key"}
    answer = await post(worker, CHAT, request(CHAT), **client)
    assert RESUMABLE not in answer.headers
    assert MARK.decode() not in answer.text
    state = Continuation(Beginning("chatcmpl-1", 1, "v1", 1), [Told(0, [70])])
    refused = await post(worker, CHAT, request(CHAT), state, **client)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "continuation_refused")
    alone = await stage(props.say("Hello."))  # open to everybody, and without a secret
    refused = await post(alone, CHAT, request(CHAT), state)
    assert refused.status_code == 403
    assert RESUMABLE not in (await post(alone, CHAT, request(CHAT))).headers
    assert [len(engine.requests) for engine in (worker.engine, alone.engine)] == [1, 1]


BEGINNING = Beginning("chatcmpl-1", 1, "v1", 1)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (409, Continuation(Beginning("chatcmpl-1", 1, "other", 1), [Told(0, [70])])),
        (400, Continuation(BEGINNING, [Told(0, [10**6])])),
        (400, Continuation(BEGINNING, [Told(1, [70])])),
        (400, Continuation(BEGINNING, [Told(0, [70]), Told(0, [71])])),
        (400, Continuation(BEGINNING, [Told(0, [70], [HeldScore(-1.0, []), HeldScore(-1.0, [])])])),
        (400, Continuation(BEGINNING, [Told(0, [70] * 140_000)])),
        (400, Continuation(Beginning("../../x", 1, "v1", 1), [])),
    ],
)
async def test_what_cannot_be_carried_on_is_refused(stage: Any, props: Any, status: int, state: Continuation) -> None:
    worker = await stage(props.say("Hello."), worker_secret=SECRET)
    refused = await post(worker, CHAT, request(CHAT), state)
    assert refused.status_code == status, refused.text
    assert worker.engine.requests == []
    assert worker.service.gate.requests == 0


@pytest.mark.parametrize("announced", ["0", "-1", "99999999", "x", "1e2", "5"])
async def test_a_beginning_of_the_body_that_is_no_continuation_is_refused(
    stage: Any, props: Any, announced: str
) -> None:
    worker = await stage(props.say("Hello."), worker_secret=SECRET)
    refused = await post(worker, CHAT, request(CHAT), **{CONTINUE: announced})
    assert refused.status_code == 400
    assert worker.engine.requests == []


@pytest.mark.parametrize("tokens", [[0] * 24, [258]], ids=["as many as it may have", "the end token"])
async def test_the_engine_takes_no_answer_that_has_ended(workers: Any, tokens: list[int]) -> None:
    state = Continuation(Beginning("chatcmpl-1", 1, "v1", 1), [Told(0, tokens)])
    refused = await post(workers[0], CHAT, request(CHAT), state)
    assert refused.status_code >= 400
    assert (await post(workers[0], CHAT, request(CHAT))).status_code == 200


async def test_a_stream_says_that_its_worker_lives_while_no_token_comes(stage: Any, props: Any) -> None:
    engine = props.engine(props.play(*[70] * 1000), hold=asyncio.Event())
    worker = await stage(engine=engine, worker_secret=SECRET)
    engine.hold.set()
    async with worker.client.stream(
        "POST", CHAT, content=request(CHAT, max_tokens=1500), headers=headers()
    ) as response:
        lines = response.aiter_lines()
        async for line in lines:
            if line.startswith("data:"):
                engine.hold.clear()
                break
        async with asyncio.timeout(30):
            async for line in lines:
                if line == ":":
                    break
        engine.hold.set()
        assert [line async for line in lines if line][-1] == "data: [DONE]"
