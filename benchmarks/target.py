"""The server under load: one request to it, timed; and what it takes, found out before the run.

Bytes are stamped when the event loop hands them over, before anything is parsed. Errors are values: a request that
fails ends with a kind that can be counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import orjson

from benchmarks.stream import AnswerReader, BadAnswer, refusal
from benchmarks.workload import Workload

_LARGEST_BODY = 64 * 2**20  # bytes of an answer
_LARGEST_ERROR = 64 * 2**10
KEPT_ALIVE = 2.0  # seconds: below what servers keep idle connections for, or a request meets one that just closed
_CONNECT_SECONDS = 10.0
_LIST_SECONDS = 30.0
_STRICT = ("HTTP 400", "HTTP 422")  # how servers refuse a field that they do not know


class TargetError(Exception):
    """Nothing can be measured there; the message says why."""


@dataclass(frozen=True)
class Exchange:
    """One request and what came of it. Moments are of `time.perf_counter`."""

    began: float
    ended: float
    answer: AnswerReader
    error: str | None = None
    detail: str = ""
    refused: bool = False  # the error is status 429


class Target:
    """One model at one server; a context manager."""

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None, seconds: float = 600.0) -> None:
        """`seconds` bound each request. Raises TargetError for an address that is none."""
        whole = url if "://" in url else f"http://{url}"
        parts = urlsplit(whole)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TargetError(f"{url} is no server's address; expected something like http://127.0.0.1:8000")
        whole = whole.rstrip("/")
        self.base = whole if parts.path.rstrip("/") else f"{whole}/v1"
        self.model = model or ""
        self.notes: list[str] = []
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._near = parts.hostname in ("127.0.0.1", "::1", "localhost")  # never through a proxy
        self._seconds = seconds
        self._usage_in_streams = True
        self._ignore_eos = True
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=self._seconds, sock_connect=_CONNECT_SECONDS),
            trust_env=not self._near,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def prepare(self, workload: Workload) -> None:
        """Finds the model and which of our fields the server knows. Raises TargetError."""
        if not self.model:
            self.model = await self._first_model()
        short = replace(workload, max_tokens=1, prompt_words=1)
        for ignore_eos, usage in ((True, True), (False, True), (True, False), (False, False)):
            self._ignore_eos, self._usage_in_streams = ignore_eos, usage
            tried = await self.ask(short, [{"role": "user", "content": "Hello"}])
            if tried.error is None or not tried.error.startswith(_STRICT):
                break
        else:
            self._ignore_eos = self._usage_in_streams = True  # it is something else that it refuses
        if not self._ignore_eos and workload.ignore_eos:
            self.notes.append("The server refuses ignore_eos: answers may end before --max-tokens.")
        if not self._usage_in_streams and workload.stream:
            self.notes.append("The server refuses stream_options: output tokens are counted by parts of text.")

    async def ask(self, workload: Workload, messages: Sequence[dict[str, Any]]) -> Exchange:
        """Sends one chat request and reads its answer to the end. Raises nothing but CancelledError."""
        body = self._body(workload, messages)
        assert self._session is not None, "a Target is used as a context manager"
        answer = AnswerReader()
        error, detail, refused = None, "", False
        began = time.perf_counter()
        try:
            async with self._session.post(
                f"{self.base}/chat/completions", data=body, headers={"Content-Type": "application/json"}
            ) as response:
                await self._read(response, answer, streamed=workload.stream)
        except BadAnswer as bad:
            error, detail, refused = str(bad), bad.detail, bad.refused
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as failure:
            error, detail = "no connection", str(failure)
        except TimeoutError:  # aiohttp's are such
            error = f"no whole answer within {self._seconds:g} s"
        except aiohttp.ServerDisconnectedError as failure:
            error, detail = "closed without an answer", str(failure)
        except aiohttp.ClientPayloadError as failure:
            error, detail = "stream cut short", str(failure)
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            error, detail = f"connection failed: {type(failure).__name__}", str(failure)
        return Exchange(began, time.perf_counter(), answer, error, detail[:300], refused)

    async def _read(self, response: aiohttp.ClientResponse, answer: AnswerReader, *, streamed: bool) -> None:
        if response.status != 200:
            raise refusal(response.status, await response.content.read(_LARGEST_ERROR))
        if streamed and response.content_type != "text/event-stream":
            raise BadAnswer("no event stream", f"content type {response.content_type}")
        if streamed:
            async for data in response.content.iter_any():
                answer.feed(data, time.perf_counter())
        else:
            body = bytearray()
            async for data in response.content.iter_any():
                body += data
                if len(body) > _LARGEST_BODY:
                    raise BadAnswer("endless answer")
            answer.whole(bytes(body), time.perf_counter())
        answer.end()

    def _body(self, workload: Workload, messages: Sequence[dict[str, Any]]) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": workload.max_tokens,
            "temperature": 0,
            "stream": workload.stream,
        }
        if workload.ignore_eos and self._ignore_eos:
            body["ignore_eos"] = True
        if workload.stream and self._usage_in_streams:
            body["stream_options"] = {"include_usage": True}
        return orjson.dumps(body)

    async def _first_model(self) -> str:
        assert self._session is not None, "a Target is used as a context manager"
        try:
            async with self._session.get(
                f"{self.base}/models", timeout=aiohttp.ClientTimeout(total=_LIST_SECONDS)
            ) as response:
                body = await response.content.read(_LARGEST_BODY)
                if response.status != 200:
                    raise TargetError(f"{self.base}/models answers {refusal(response.status, body)}")
                return str(orjson.loads(body)["data"][0]["id"])
        except (ValueError, KeyError, TypeError, IndexError):
            raise TargetError(f"{self.base}/models lists no model; name one with --model") from None
        except (aiohttp.ClientError, OSError) as error:
            raise TargetError(f"no server answers at {self.base}: {error or type(error).__name__}") from error
