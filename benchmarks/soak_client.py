"""Sends one case of a soak and says what came of it: answered, refused as expected, turned away, left, or wrong."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp

from benchmarks.soak_cases import CHOICES, REGEX, TEXT, Case
from benchmarks.target import KEPT_ALIVE

Result = Literal["answered", "refused", "turned away", "left", "wrong"]
_LARGEST = 8 * 2**20  # bytes of an answer
_HEADERS = {"Content-Type": "application/json"}
_REASONS = ("stop", "length", "tool_calls")


@dataclass(frozen=True)
class Outcome:
    """`detail` says what was wrong. `wait` is how long a worker that turned the request away asked to wait, seconds."""

    kind: str
    result: Result
    detail: str = ""
    wait: float = 0.0


class _Wrong(Exception):
    """What came is not what had to come."""


@dataclass
class _Choice:
    """One answer, put together."""

    text: str = ""
    calls: str = ""  # arguments of the function calls
    reason: str | None = None


@dataclass
class SoakClient:
    """`seconds` bound each request: one that has no end by then is lost. `steady`: same requests, same answers."""

    url: str
    seconds: float
    steady: bool
    _session: aiohttp.ClientSession = field(init=False)
    _same: dict[str, str] = field(default_factory=dict)

    async def __aenter__(self) -> SoakClient:
        self._session = self._open()
        return self

    async def hang_up(self) -> None:
        """Closes all connections, idle ones too; the next requests open others."""
        await self._session.close()
        self._session = self._open()

    def _open(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=self.seconds)
        return aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE)
        )

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, case: Case) -> Outcome:
        """Raises nothing but CancelledError."""
        try:
            if case.leaves == "in the upload":
                await self._leave_upload(case)
                return Outcome(case.kind, "left")
            if case.leaves == "before the answer":
                try:
                    async with asyncio.timeout(case.patience):
                        return await self._exchange(case)
                except TimeoutError:
                    return Outcome(case.kind, "left")
            return await self._exchange(case)
        except _Wrong as wrong:
            return Outcome(case.kind, "wrong", str(wrong)[:400])
        except TimeoutError:
            return Outcome(case.kind, "wrong", f"lost: no end within {self.seconds:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return Outcome(case.kind, "wrong", f"{type(error).__name__}: {error}"[:400])

    async def _exchange(self, case: Case) -> Outcome:
        async with self._session.post(self.url + case.path, data=case.body, headers=_HEADERS) as response:
            if response.status == 429:
                return Outcome(case.kind, "turned away", wait=_retry_after(response))
            if response.status == 200 and case.leaves == "in its middle":
                parts = 0
                async for _ in response.content.iter_any():
                    parts += 1
                    if parts >= case.patience:
                        response.close()
                        return Outcome(case.kind, "left")
                return Outcome(case.kind, "left")
            body = bytearray()
            async for data in response.content.iter_any():
                body += data
                if len(body) > _LARGEST:
                    raise _Wrong("an endless answer")
        if case.refusal is not None or response.status != 200:
            return _refused(case, response.status, bytes(body))
        self._check(case, _streamed(bytes(body)) if case.stream else _whole(bytes(body)))
        return Outcome(case.kind, "answered")

    async def _leave_upload(self, case: Case) -> None:
        """Promises the whole body, sends a part of it, and hangs up."""
        parts = urlsplit(self.url)
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = f"POST {case.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(case.body)}\r\n\r\n".encode())
        writer.write(case.body[: int(len(case.body) * 0.9 * min(case.patience, 1.0))])
        try:
            await writer.drain()
            await asyncio.sleep(case.patience / 4)
        finally:
            writer.close()

    def _check(self, case: Case, found: tuple[list[_Choice], dict[str, int]]) -> None:
        choices, usage = found
        if len(choices) != case.choices:
            raise _Wrong(f"{len(choices)} choices, expected {case.choices}")
        for choice in choices:
            if choice.reason not in _REASONS:
                raise _Wrong(f"finish_reason {choice.reason!r}")
            _check_form(case, choice)
        if not 0 <= usage["completion_tokens"] <= case.max_tokens * case.choices:
            raise _Wrong(
                f"{usage['completion_tokens']} tokens, at most {case.max_tokens * case.choices} were asked for"
            )
        if case.same is not None and self.steady:
            text = choices[0].text
            if self._same.setdefault(case.same, text) != text:
                raise _Wrong(f"answered otherwise than before: {text[:80]!r}, {self._same[case.same][:80]!r}")


def _retry_after(response: aiohttp.ClientResponse) -> float:
    told = response.headers.get("Retry-After", "")
    if not told.isdecimal():
        raise _Wrong(f"429 with Retry-After {told!r}")
    return float(told)


def _refused(case: Case, status: int, body: bytes) -> Outcome:
    """As expected, or wrong."""
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        raise _Wrong(f"status {status}: {body[:200]!r}") from None
    expected = case.refusal or (200, None)
    if (status, code) != expected:
        raise _Wrong(f"status {status}, code {code}, expected {expected[0]}, {expected[1]}: {body[:200]!r}")
    return Outcome(case.kind, "refused")


def _whole(body: bytes) -> tuple[list[_Choice], dict[str, int]]:
    try:
        answer = json.loads(body)
        choices = []
        for told in answer["choices"]:
            message = told.get("message") or {"content": told["text"]}
            calls = "".join(call["function"]["arguments"] for call in message.get("tool_calls") or [])
            choices.append(_Choice(message["content"] or "", calls, told["finish_reason"]))
        return choices, answer["usage"]
    except (ValueError, KeyError, TypeError) as error:
        raise _Wrong(f"unreadable answer, {type(error).__name__} {error}: {body[:200]!r}") from None


def _streamed(body: bytes) -> tuple[list[_Choice], dict[str, int]]:
    frames = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    for frame in frames:
        if frame.startswith(b'{"error"'):
            raise _Wrong(f"an error in the stream: {frame[:200]!r}")
    if not frames or frames[-1] != b"[DONE]":
        raise _Wrong(f"a stream without its end: {body[-200:]!r}")
    choices: defaultdict[int, _Choice] = defaultdict(_Choice)
    usage: dict[str, int] | None = None
    try:
        for chunk in map(json.loads, frames[:-1]):
            usage = chunk.get("usage") or usage
            for told in chunk["choices"]:
                _add(choices[told["index"]], told)
    except (ValueError, KeyError, TypeError) as error:
        raise _Wrong(f"unreadable stream, {type(error).__name__} {error}: {body[:200]!r}") from None
    if usage is None:
        raise _Wrong("a stream without the usage that was asked for")
    return list(choices.values()), usage


def _add(choice: _Choice, told: dict[str, Any]) -> None:
    delta = told["delta"]
    choice.text += delta.get("content") or ""
    choice.calls += "".join(call["function"].get("arguments") or "" for call in delta.get("tool_calls") or [])
    choice.reason = told["finish_reason"] or choice.reason


def _check_form(case: Case, choice: _Choice) -> None:
    """What was cut off by its length is no whole form."""
    if case.path == TEXT or case.form is None or choice.reason == "length":
        return
    if case.form in ("object", "call"):
        text = choice.text if case.form == "object" else choice.calls
        try:
            told = json.loads(text)
        except ValueError:
            raise _Wrong(f"{case.form}: no JSON: {text[:200]!r}") from None
        if set(told) != {"name", "lives"}:
            raise _Wrong(f"{case.form}: not by its schema: {text[:200]!r}")
    elif case.form == "regex" and not re.fullmatch(REGEX, choice.text):
        raise _Wrong(f"regex: {choice.text[:200]!r}")
    elif case.form == "choice" and choice.text not in CHOICES:
        raise _Wrong(f"choice: {choice.text[:200]!r}")
