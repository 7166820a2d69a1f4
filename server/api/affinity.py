"""What a request shares with others, for routing: a digest of its first picture, else of its beginning.

Digests are taken of the pictures' bytes as they go to the worker, never of a name that a client gives them; of a large
picture's length and of samples of its bytes, since here they only say where caches may know it: two pictures taken for
one would meet at a worker, and nothing worse. The first picture stands for all: later turns of a conversation add
pictures after it, and what caches know of a prompt, they know from its beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from server.media.images import ImageReference

_BEGINNING = 4096  # characters of text that are looked at
_LEAST = 1024  # characters: what is shorter costs a worker next to nothing
_CHARACTERS_PER_TOKEN = 4
_DIGEST_BYTES = 16
_SAMPLES, _SAMPLE = 16, 4096  # of a picture's URL: how many, spread evenly, and how many characters each


@dataclass(frozen=True)
class Shared:
    """`base.Work.affinity` and `reusable_tokens`."""

    digest: bytes = b""
    tokens: int = 0


def of_pictures(references: Sequence[ImageReference], image_tokens: int, tenant: str) -> Shared:
    """Once the pictures stand in the body."""
    image = references[0].part["image_url"]
    url = str(image if isinstance(image, str) else image["url"])
    return Shared(_digest(tenant, "picture", _samples(url)), image_tokens)


def of_text(payload: dict[str, Any], tenant: str) -> Shared:
    """Of a request without pictures. Fields that make no sense count as absent: the worker refuses them."""
    beginning = ""
    for text in _texts(payload):
        beginning += text
        if len(beginning) >= _BEGINNING:
            break
    if len(beginning) < _LEAST:
        return Shared()
    beginning = beginning[:_BEGINNING]
    return Shared(_digest(tenant, "text", beginning), len(beginning) // _CHARACTERS_PER_TOKEN)


def _samples(url: str) -> str:
    """All of a short one; else its length, its beginning, its end, and parts between."""
    last = len(url) - _SAMPLE
    if last <= _SAMPLES * _SAMPLE:
        return url
    starts = (last * place // (_SAMPLES - 1) for place in range(_SAMPLES))
    return f"{len(url)}:" + "".join(url[start : start + _SAMPLE] for start in starts)


def _texts(payload: dict[str, Any]) -> Iterator[str]:
    messages, prompt = payload.get("messages"), payload.get("prompt")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                yield text[:_BEGINNING]
    if isinstance(prompt, list) and prompt:
        prompt = prompt[0]
    if isinstance(prompt, str):
        yield prompt[:_BEGINNING]


def _digest(tenant: str, kind: str, content: str) -> bytes:
    digest = hashlib.blake2b(f"{tenant}\0{kind}\0".encode(), digest_size=_DIGEST_BYTES)
    digest.update(content.encode("utf-8", "surrogatepass"))
    return digest.digest()
