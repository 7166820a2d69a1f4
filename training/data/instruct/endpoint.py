"""One request to an OpenAI-compatible chat endpoint, and in what ways it can fail.

Knows nothing of what is asked, and never tries again: that is the asker's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec

from training.data.errors import DataError

_LARGEST_BODY = 8 * 2**20  # bytes
_CONNECT_SECONDS = 10.0
_UNSURE = frozenset((502, 504))  # a gateway gave up: behind it the answer may have been written
_WRONG = frozenset((401, 402, 403, 404, 405))  # what stays wrong whatever is asked


class AskAgain(Exception):
    """No answer, but there may be one later."""

    def __init__(self, why: str, *, after: float | None = None, unsure: bool = False) -> None:
        """`after`: seconds that the endpoint asks for; `unsure`: the request may have been charged all the same."""
        super().__init__(why)
        self.after = after
        self.unsure = unsure


class RequestRefused(Exception):
    """The endpoint does not take this request, and will not."""


class EndpointError(DataError):
    """Nothing can be asked there at all."""


@dataclass(frozen=True)
class Reply:
    text: str
    finish: str
    prompt_tokens: int | None  # None: the endpoint does not say
    completion_tokens: int | None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


_decode_body = msgspec.json.Decoder(_Body).decode


class Endpoint:
    """One model at one address; an async context manager."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        temperature: float = 0.7,
        max_tokens: int = 1024,
        limit_field: str = "max_tokens",
        seconds: float = 300.0,
    ) -> None:
        """`seconds` bound each request, the last byte of its answer included. Raises EndpointError: no address."""
        whole = (url if "://" in url else f"http://{url}").rstrip("/")
        parts = urlsplit(whole)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointError(f"{url} is no server's address; expected something like http://127.0.0.1:8000")
        self.base = whole if parts.path else f"{whole}/v1"
        self.model = model
        self._near = parts.hostname in ("127.0.0.1", "::1", "localhost")  # never through a proxy
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._options: dict[str, Any] = {"temperature": temperature, limit_field: max_tokens}
        self._timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
        self._seconds = seconds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=self._headers,
            timeout=self._timeout,
            trust_env=not self._near,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, messages: Sequence[dict[str, str]], idempotency_key: str) -> Reply:
        """Raises AskAgain, RequestRefused, EndpointError."""
        assert self._session is not None, "an Endpoint is used as a context manager"
        body = msgspec.json.encode({"model": self.model, "messages": messages, "stream": False, **self._options})
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
        try:
            async with self._session.post(f"{self.base}/chat/completions", data=body, headers=headers) as response:
                data = await _whole(response)
                if response.status != 200:
                    raise _failure(response, data)
                return _reply(data)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise AskAgain(f"no connection to {self.base}: {error}") from error
        except TimeoutError as error:
            raise AskAgain(f"no whole answer within {self._seconds:g} s", unsure=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise AskAgain(f"the connection broke: {error or type(error).__name__}", unsure=True) from error


async def first_model(url: str, api_key: str | None) -> str:
    """The first model that the endpoint lists. Raises EndpointError."""
    async with Endpoint(url, "", api_key=api_key, seconds=30.0) as endpoint:
        assert endpoint._session is not None
        try:
            async with endpoint._session.get(f"{endpoint.base}/models") as response:
                data = await _whole(response)
                if response.status != 200:
                    raise EndpointError(f"{endpoint.base}/models answers {response.status}: {_told(data)}")
                return str(msgspec.json.decode(data)["data"][0]["id"])
        except (msgspec.MsgspecError, KeyError, TypeError, IndexError) as error:
            raise EndpointError(f"{endpoint.base}/models lists no model; name one with --model") from error
        except (aiohttp.ClientError, OSError, AskAgain) as error:
            raise EndpointError(f"no server answers at {endpoint.base}: {error or type(error).__name__}") from error


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > _LARGEST_BODY:
            raise AskAgain(f"an answer of more than {_LARGEST_BODY >> 20} MiB", unsure=True)
    return bytes(data)


def _reply(data: bytes) -> Reply:
    try:
        body = _decode_body(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise AskAgain(f"not a chat completion: {_told(data)}", unsure=True) from error
    if not body.choices:
        raise AskAgain("a chat completion without choices", unsure=True)
    choice = body.choices[0]
    usage = body.usage
    if usage is not None and min(usage.prompt_tokens, usage.completion_tokens) < 0:
        usage = None
    return Reply(
        choice.message.content or "",
        choice.finish_reason or "",
        usage.prompt_tokens if usage else None,
        usage.completion_tokens if usage else None,
    )


def _failure(response: aiohttp.ClientResponse, data: bytes) -> Exception:
    status, told = response.status, _told(data)
    why = f"HTTP {status}: {told}"
    if status in _WRONG or "insufficient_quota" in told:
        return EndpointError(f"{response.url} answers {why}")
    if status in (408, 409, 425, 429) or status >= 500:
        return AskAgain(why, after=retry_after(response.headers.get("Retry-After")), unsure=status in _UNSURE)
    return RequestRefused(why)


def retry_after(header: str | None) -> float | None:
    """Seconds from now; RFC 9110 10.2.3: a number of them, or a date. None: none given, or not readable."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _told(data: bytes) -> str:
    """What an error body says, short and on one line."""
    return " ".join(data[:400].decode("utf-8", "replace").split()) or "nothing"
