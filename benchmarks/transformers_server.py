"""transformers' `generate` behind OpenAI's chat API: what one gets without an engine. The baseline of comparisons.

One request at a time, in order of arrival, greedy, streamed or not. Pictures come as data URLs. It is as plain as a
server can be and refuses what it does not do; it is no server to use.

    python -m benchmarks.transformers_server --model FOLDER --served-name m --port 9000
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import io
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from aiohttp import web
from PIL import Image
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForImageTextToText, AutoProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

_LARGEST_BODY = 256 * 2**20  # bytes
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Question:
    """What of a request this server understands."""

    messages: list[dict[str, Any]]  # with placeholders where pictures stand
    pictures: list[Image.Image]
    max_tokens: int
    ignore_eos: bool
    stream: bool

    def finish(self, tokens: int) -> str:
        """OpenAI's finish_reason."""
        return "length" if tokens >= self.max_tokens else "stop"

    @staticmethod
    def read(body: bytes) -> Question:
        """Raises ValueError with words."""
        try:
            raw = orjson.loads(body)
            pictures: list[Image.Image] = []
            messages = [{"role": one["role"], "content": _parts(one["content"], pictures)} for one in raw["messages"]]
            if raw.get("temperature", 1) != 0:
                raise ValueError("temperature: this server answers greedily only, expected 0")
            most = int(raw.get("max_tokens") or 256)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no chat request: {error!r}") from error
        return Question(messages, pictures, most, bool(raw.get("ignore_eos")), bool(raw.get("stream")))


def _parts(content: Any, pictures: list[Image.Image]) -> list[dict[str, Any]]:
    parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
    plain: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] == "text":
            plain.append({"type": "text", "text": part["text"]})
            continue
        head, _, data = part["image_url"]["url"].partition(",")
        if not head.startswith("data:"):
            raise ValueError("image_url: this server takes data URLs only")
        try:
            pictures.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB"))
        except (binascii.Error, OSError) as error:
            raise ValueError(f"image_url: no picture ({error})") from error
        plain.append({"type": "image"})
    return plain


class _TokenQueue(BaseStreamer):  # type: ignore[misc]
    """Hands each new token over to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tokens: asyncio.Queue[int | None] = asyncio.Queue()
        self._loop = loop
        self._prompt_came = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_came:  # generate hands over the prompt first
            self._prompt_came = True
            return
        for token in value.flatten().tolist():
            self._loop.call_soon_threadsafe(self.tokens.put_nowait, token)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self.tokens.put_nowait, None)


class _Abandoned(StoppingCriteria):  # type: ignore[misc]
    """Ends an answer that nobody waits for."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class Server:
    """One model, one answer at a time."""

    def __init__(self, folder: Path, name: str, dtype: torch.dtype) -> None:
        self._name = name
        self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, local_files_only=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = loaded.eval().to(device)
        self._one = asyncio.Lock()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self._name, "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        try:
            question = Question.read(await request.read())
        except ValueError as error:
            return web.json_response({"error": {"message": str(error), "code": "bad_request"}}, status=400)
        async with self._one:
            inputs = await asyncio.to_thread(self._inputs, question)
            prompt = int(inputs["input_ids"].shape[1])
            async with aclosing(self._answer(question, inputs)) as texts:
                if question.stream:
                    return await self._streamed(request, question, prompt, texts)
                pieces = [text async for text in texts]
            message = {"role": "assistant", "content": "".join(pieces)}
            choice = {"index": 0, "message": message, "finish_reason": question.finish(len(pieces))}
            return web.json_response({"choices": [choice], "usage": _usage(prompt, len(pieces))})

    async def _streamed(
        self, request: web.Request, question: Question, prompt: int, texts: AsyncGenerator[str, None]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        count = 0
        async for text in texts:
            count += 1
            await response.write(_event({"choices": [{"index": 0, "delta": {"content": text}}]}))
        end = {"index": 0, "delta": {}, "finish_reason": question.finish(count)}
        await response.write(_event({"choices": [end]}))
        await response.write(_event({"choices": [], "usage": _usage(prompt, count)}) + b"data: [DONE]\n\n")
        return response

    def _inputs(self, question: Question) -> dict[str, torch.Tensor]:
        text = self._processor.apply_chat_template(question.messages, add_generation_prompt=True)
        read = self._processor(text=text, images=question.pictures or None, return_tensors="pt")
        return dict(read.to(self._model.device, dtype=self._model.dtype))

    async def _answer(self, question: Question, inputs: dict[str, torch.Tensor]) -> AsyncGenerator[str, None]:
        """A text for each token; empty while a character is not whole."""
        queue, abandoned = _TokenQueue(asyncio.get_running_loop()), _Abandoned()
        work = asyncio.create_task(asyncio.to_thread(self._generate, question, inputs, queue, abandoned))
        decoder, tokenizer = DecodeStream(skip_special_tokens=True), self._processor.tokenizer.backend_tokenizer
        try:
            while (token := await queue.tokens.get()) is not None:
                yield decoder.step(tokenizer, token) or ""
        finally:
            abandoned.event.set()
            await work

    def _generate(
        self, question: Question, inputs: dict[str, torch.Tensor], queue: _TokenQueue, abandoned: _Abandoned
    ) -> None:
        ends = {"eos_token_id": None} if question.ignore_eos else {}
        try:
            self._model.generate(
                **inputs,
                max_new_tokens=question.max_tokens,
                do_sample=False,
                streamer=queue,
                stopping_criteria=[abandoned],
                **ends,
            )
        finally:
            queue.end()  # a second time where all went well: nobody listens then


def _usage(prompt: int, answer: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--served-name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", choices=_DTYPES, default="bfloat16")
    asked = parser.parse_args()
    server = Server(asked.model, asked.served_name, _DTYPES[asked.dtype])
    web.run_app(server.app(), host=asked.host, port=asked.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
