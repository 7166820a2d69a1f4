"""What a soak asks: requests of many kinds by number, good and bad, each with what is to come of it. Sends nothing."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from benchmarks.own_worker import chat_body, picture_part, text_part
from benchmarks.pictures import Size, picture_file
from benchmarks.workload import Workload

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
Leaving = Literal["before the answer", "in its middle", "in the upload"]
Form = Literal["object", "regex", "choice", "call"]

REGEX, CHOICES = "[a-f]{3,8}-[0-9]{2}", ["red house", "blue house", "no house"]
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "lives": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["name", "lives"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": _SCHEMA}}
_HUGE = (Size(3200, 2100), Size(1200, 5000), Size(4096, 700))
_TINY = (Size(1, 1), Size(2, 3), Size(200, 1))
_USUAL = (Size(336, 336), Size(640, 480), Size(90, 300))
_MANY = 17  # pictures: one more than a worker takes by default


@dataclass(frozen=True)
class Case:
    """One request. `refusal` is the status and code that are to come; None: an answer. `same` names requests whose
    answers are equal; `form` is what the answer has to be. A client that leaves does so at `leaves`."""

    kind: str
    body: bytes
    path: str = CHAT
    refusal: tuple[int, str | None] | None = None
    stream: bool = False
    choices: int = 1
    max_tokens: int = 0
    form: Form | None = None
    same: str | None = None
    leaves: Leaving | None = None
    patience: float = 0.0  # seconds, or parts of a stream, after which the client leaves


@dataclass
class Traffic:
    """Draws cases. `words` is the length in words of a prompt that just fits into the context."""

    seed: int
    words: int
    max_tokens: int = 32
    _draw: random.Random = field(init=False)
    _asked: int = 0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    def next(self) -> Case:
        """One at random, good ones mostly; one in five good ones is left by its client."""
        make = self._draw.choices([make for make, _ in self._kinds], [weight for _, weight in self._kinds])[0]
        return self._leaving(make())

    def every(self) -> list[Case]:
        """One of each kind."""
        return [make() for make, _ in self._kinds]

    @cached_property
    def _kinds(self) -> list[tuple[Callable[[], Case], int]]:
        return [
            (self._text, 12),
            (self._long_prompt, 4),
            (self._new_picture, 8),
            (self._known_picture, 10),
            (self._several_pictures, 4),
            (self._huge_picture, 2),
            (self._tiny_picture, 3),
            (self._several_answers, 4),
            (self._raw_text, 3),
            (self._object, 4),
            (self._regex, 3),
            (self._choice, 3),
            (self._call, 3),
            (self._truncated_picture, 2),
            (self._bomb, 2),
            (self._no_picture, 2),
            (self._bad_base64, 1),
            (self._local_file, 1),
            (self._too_many_pictures, 1),
            (self._no_json, 2),
            (self._no_body, 1),
            (self._wrong_type, 2),
            (self._bad_schema, 2),
            (self._bad_regex, 1),
            (self._other_model, 1),
            (self._too_long, 1),
        ]

    def _leaving(self, case: Case) -> Case:
        if case.refusal is not None or self._draw.random() > 0.2:
            return case
        leaves: Leaving = self._draw.choice(("before the answer", "in its middle", "in the upload"))
        if leaves == "in its middle" and not case.stream:
            leaves = "before the answer"
        patience = self._draw.randint(1, 12) if leaves == "in its middle" else self._draw.uniform(0, 1.0)
        return replace(case, leaves=leaves, patience=patience)

    def _good(self, kind: str, content: Any, *, same: str | None = None, form: Form | None = None, **more: Any) -> Case:
        """A same answer is asked for greedily or by a fixed seed."""
        stream = self._draw.random() < 0.6
        drawn: dict[str, Any] = {"temperature": 0} if self._draw.random() < 0.4 else {"seed": self._draw.randrange(99)}
        if same is not None:
            drawn = {"temperature": 0} if len(same) % 2 else {"temperature": 0.9, "seed": 7}
        tokens = more.pop("max_tokens", None) or (self.max_tokens if same else self._draw.randint(1, self.max_tokens))
        extra = {"stream_options": {"include_usage": True}} if stream else {}
        body = chat_body(content, max_tokens=tokens, stream=stream, **extra, **(drawn | more))
        return Case(
            kind,
            json.dumps(body).encode(),
            stream=stream,
            choices=more.get("n", 1),
            max_tokens=tokens,
            form=form,
            same=same,
        )

    def _bad(self, kind: str, content: Any, code: str | None, status: int = 400, **more: Any) -> Case:
        body = chat_body(content, max_tokens=4, stream=self._draw.random() < 0.5) | more
        return Case(kind, json.dumps(body).encode(), refusal=(status, code))

    def _question(self, words: int | None = None) -> str:
        self._asked += 1
        return Workload(prompt_words=words or self._draw.randint(1, 12), seed=self.seed).question(self._asked, 0)

    def _picture(self, sizes: tuple[Size, ...], number: int | None = None) -> dict[str, Any]:
        kind: Literal["png", "jpeg"] = "png" if self._draw.random() < 0.5 and number is None else "jpeg"
        number = self._draw.randrange(2**40) if number is None else number
        return _part(picture_file(sizes[number % len(sizes)], kind, (self.seed, number)), kind)

    def _text(self) -> Case:
        return self._good("text", self._question())

    def _long_prompt(self) -> Case:
        return self._good("long prompt", self._question(int(self.words * self._draw.uniform(0.4, 1.0))))

    def _new_picture(self) -> Case:
        return self._good("new picture", [self._picture(_USUAL), text_part(self._question())])

    def _known_picture(self) -> Case:
        number = self._draw.randrange(6)
        name = "x" * (number + 1)
        return self._good("known picture", [self._picture(_USUAL, number), text_part("What is it?")], same=name)

    def _several_pictures(self) -> Case:
        parts = [self._picture(_TINY + _USUAL, self._draw.randrange(9)) for _ in range(self._draw.randint(2, 3))]
        return self._good("several pictures", [*parts, text_part(self._question())])

    def _huge_picture(self) -> Case:
        return self._good("huge picture", [self._picture(_HUGE, self._draw.randrange(3)), text_part(self._question())])

    def _tiny_picture(self) -> Case:
        return self._good("tiny picture", [self._picture(_TINY), text_part(self._question())])

    def _several_answers(self) -> Case:
        return self._good("several answers", self._question(), n=self._draw.randint(2, 4))

    def _raw_text(self) -> Case:
        tokens = self._draw.randint(1, self.max_tokens)
        body = {"model": chat_body("")["model"], "prompt": self._question(), "max_tokens": tokens}
        return Case("raw text", json.dumps(body).encode(), path=TEXT, max_tokens=tokens)

    def _object(self) -> Case:
        form = {"type": "json_schema", "json_schema": {"name": "cat", "schema": _SCHEMA, "strict": True}}
        return self._good("json schema", self._question(), form="object", max_tokens=96, response_format=form)

    def _regex(self) -> Case:
        return self._good("regex", self._question(), form="regex", max_tokens=24, guided_regex=REGEX)

    def _choice(self) -> Case:
        return self._good("choice", self._question(), form="choice", max_tokens=24, guided_choice=CHOICES)

    def _call(self) -> Case:
        return self._good(
            "tool call", self._question(), form="call", max_tokens=96, tools=[_TOOL], tool_choice="required"
        )

    def _truncated_picture(self) -> Case:
        whole = picture_file(Size(80, 60), "png", (self.seed, 1))
        cut = whole[: self._draw.randint(40, len(whole) - 40)]
        return self._bad("truncated picture", [_part(cut, "png"), text_part("?")], "invalid_image")

    def _bomb(self) -> Case:
        return self._bad(
            "bomb", [_part(_bomb(self._draw.choice((9_000, 60_000))), "png"), text_part("?")], "invalid_image"
        )

    def _no_picture(self) -> Case:
        data = self._draw.choice((b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n", b"\x00" * 64, b"GIF89a"))
        return self._bad("no picture", [_part(data, "png"), text_part("?")], "invalid_image")

    def _bad_base64(self) -> Case:
        return self._bad("bad base64", [picture_part("data:image/png;base64,@@@@")], "invalid_image_url")

    def _local_file(self) -> Case:
        return self._bad("local file", [picture_part("file:///etc/passwd")], "invalid_image_url")

    def _too_many_pictures(self) -> Case:
        small = _part(picture_file(Size(4, 4), "png", (self.seed, 2)), "png")
        return self._bad("too many pictures", [small] * _MANY, "too_many_images")

    def _no_json(self) -> Case:
        return Case("no JSON", self._draw.choice((b'{"model": ', b"[1, 2", b"\xff\xfe{}", b"{]}")), refusal=(400, None))

    def _no_body(self) -> Case:
        return Case("no body", b"", refusal=(400, None))

    def _wrong_type(self) -> Case:
        wrong = self._draw.choice(({"temperature": "hot"}, {"max_tokens": -1}, {"n": 0}, {"messages": "hello"}))
        return self._bad("wrong type", "?", None, **wrong)

    def _bad_schema(self) -> Case:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}, "strict": True}}
        return self._bad("bad schema", "?", "invalid_grammar", response_format=form)

    def _bad_regex(self) -> Case:
        return self._bad("bad regex", "?", "invalid_grammar", guided_regex="(a")

    def _other_model(self) -> Case:
        return self._bad("other model", "?", "model_not_found", 404, model="no-such-model")

    def _too_long(self) -> Case:
        return self._bad("too long a prompt", self._question(2 * self.words + 50), "context_length_exceeded")


def _part(data: bytes, kind: str) -> dict[str, Any]:
    return picture_part(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header claims `side` times `side` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )
