"""`tephra chat`: a conversation about pictures in the terminal, with any OpenAI-compatible server.

Keeps the turns, sends them all each time (the server holds no conversation), and prints the answer as it streams.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from rich.console import Console

from model.errors import ImageError
from model.image_file import read_header

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 600.0  # most time between two parts of an answer: a first prompt on a busy CPU may wait long
MOST_IMAGE_BYTES = 64 * 1024 * 1024
# What would drive the terminal instead of being read: control characters but for tab and newline.
_UNPRINTABLE = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
HELP = "/image FILE adds a picture to the next question, /new starts over, /quit (or Ctrl-D) ends."


class ChatError(Exception):
    """The question got no answer; the message says why, for the person at the terminal."""


class Chat:
    """One conversation with one server."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> None:
        self._base = _api_base(url)
        options = {"max_tokens": max_tokens, "temperature": temperature}
        self._options = {name: value for name, value in options.items() if value is not None}
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        near = urlsplit(self._base).hostname in ("127.0.0.1", "::1", "localhost")  # never through a proxy
        self._client = httpx.Client(base_url=self._base, headers=headers, timeout=timeout, trust_env=not near)
        self._model = model
        self._turns: list[dict[str, Any]] = []
        self._pictures: list[str] = []  # data URLs for the next question

    def close(self) -> None:
        self._client.close()

    def attach(self, image: Path) -> None:
        """Adds a picture to the next question. Raises ChatError."""
        self._pictures.append(data_url(image))

    def restart(self) -> None:
        self._turns.clear()
        self._pictures.clear()

    def ask(self, question: str) -> Generator[str, None, None]:
        """Yields the answer piece by piece. Raises ChatError; the conversation is then as it was before the question.

        An answer that its reader stops reading is kept as far as it was read.
        """
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in self._pictures]
        content: Any = [*pictures, {"type": "text", "text": question}] if pictures else question
        turns = [*self._turns, {"role": "user", "content": content}]
        pieces: list[str] = []
        try:
            for piece in self._stream(turns):
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self._turns = [*turns, {"role": "assistant", "content": "".join(pieces)}]
                self._pictures = []

    def _stream(self, turns: list[dict[str, Any]]) -> Iterator[str]:
        body = {"model": self._served_model(), "messages": turns, "stream": True, **self._options}
        with self._told(), self._client.stream("POST", "chat/completions", json=body) as answer:
            if answer.status_code != 200:
                answer.read()
                raise ChatError(_reason(answer))
            for line in answer.iter_lines():
                data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    yield from _text(data)
        raise ChatError("The answer broke off before its end.")

    def _served_model(self) -> str:
        """The model that was asked for, or the first one that the server lists."""
        if self._model is None:
            with self._told():
                answer = self._client.get("models")
            if answer.status_code != 200:
                raise ChatError(_reason(answer))
            try:
                self._model = str(answer.json()["data"][0]["id"])
            except (ValueError, KeyError, TypeError) as error:
                raise ChatError(f"{self._base} does not answer like an OpenAI-compatible server.") from error
            except IndexError as error:
                raise ChatError(f"{self._base} serves no model now; try again when a worker is ready.") from error
        return self._model

    @contextmanager
    def _told(self) -> Iterator[None]:
        """httpx's errors in words."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ChatError(
                f"No server answers at {self._base}: start one with 'tephra up', or name it with --url."
            ) from error
        except httpx.TimeoutException as error:
            raise ChatError(f"{self._base} was silent for {SILENCE_SECONDS:g} s.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChatError(f"The connection to {self._base} broke: {error or type(error).__name__}") from error


def talk(chat: Chat, console: Console) -> None:
    """Question and answer until the person leaves. Ctrl-C ends an answer, or the conversation between two answers."""
    console.print(HELP, style="dim")
    while True:
        try:
            line = console.input("[bold]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        command, _, argument = line.partition(" ")
        try:
            if command in ("/quit", "/exit"):
                return
            if command == "/new":
                chat.restart()
            elif command == "/image":
                chat.attach(Path(argument.strip()).expanduser())
            elif command.startswith("/"):
                console.print(HELP, style="dim")
            elif line:
                show(chat, line, console)
        except ChatError as error:
            console.print(str(error), style="red", markup=False, highlight=False)


def show(chat: Chat, question: str, console: Console) -> None:
    """Prints one answer as it comes. Raises ChatError."""
    answer = chat.ask(question)
    begun = False
    try:
        for piece in answer:
            begun = True
            console.out(piece.translate(_UNPRINTABLE), end="", highlight=False)
            console.file.flush()
    except KeyboardInterrupt:
        begun = True
        console.out(" [stopped]", end="", highlight=False)
    finally:
        answer.close()  # cancels the answer at the server, if it is not complete
        if begun:
            console.out("")


def data_url(image: Path) -> str:
    """The file as a data URL. Raises ChatError for what is no picture, before it travels."""
    try:
        if image.stat().st_size > MOST_IMAGE_BYTES:
            raise ChatError(f"{image} is larger than {MOST_IMAGE_BYTES // 2**20} MiB.")
        data = image.read_bytes()
        header = read_header(data)
    except OSError as error:
        raise ChatError(f"Cannot read {image}: {error.strerror}.") from error
    except ImageError as error:
        raise ChatError(f"{image}: {error}") from error
    return f"data:image/{header.format.lower()};base64,{base64.b64encode(data).decode()}"


def _api_base(url: str) -> str:
    """`http://host:port` and `http://host:port/v1` are both understood."""
    whole = url if "://" in url else f"http://{url}"
    parts = urlsplit(whole)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ChatError(f"{url} is no server's address; expected something like http://127.0.0.1:8000.")
    return whole.rstrip("/") if parts.path.rstrip("/") else f"{whole.rstrip('/')}/v1"


def _text(data: str) -> Iterator[str]:
    """The text of one event. Raises ChatError when the event is an error."""
    try:
        event = json.loads(data)
        if "error" in event:
            raise ChatError(str(event["error"].get("message", event["error"])))
        for choice in event.get("choices", ()):
            if piece := choice["delta"].get("content"):
                yield piece
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ChatError(f"The server sent what is no part of an answer: {data[:200]}") from error


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}."
