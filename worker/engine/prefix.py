"""What a KV block holds, as a name: blocks of equal names hold equal keys and values and can be shared.

The name of a block is a digest of the name before it, its own tokens, and the images that reach into it; so it stands
for everything from the first token on. The first name before all is that of the weights and of the tenant's salt:
nothing is shared across weights, nor between tenants, who could otherwise learn of each other's prompts by timing.
Images count by the digest of their bytes and dimensions, never by anything that a client says of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

_DIGEST_BYTES = 32


def root_name(weights: str, salt: str) -> bytes:
    """The name in front of a prompt's first block."""
    weights_bytes = weights.encode()
    return _digest(len(weights_bytes).to_bytes(8, "little"), weights_bytes, salt.encode())


@dataclass(frozen=True)
class ImagePlace:
    """Tokens `start` .. `end` - 1 stand for the image that `digest` names."""

    start: int
    end: int
    digest: str


class BlockNames:
    """The names of one sequence's full blocks, worked out as far as they were asked for."""

    def __init__(self, root: bytes, block_size: int, images: Sequence[ImagePlace]) -> None:
        self._root = root
        self._block_size = block_size
        self._images = images
        self._names: list[bytes] = []

    def first(self, count: int, tokens: Sequence[int]) -> list[bytes]:
        """The names of the first `count` blocks of a sequence that begins with `tokens`, which only ever grows."""
        for index in range(len(self._names), count):
            start = index * self._block_size
            self._names.append(self._name(start, tokens[start : start + self._block_size]))
        return self._names[:count]

    def _name(self, start: int, tokens: Sequence[int]) -> bytes:
        before = self._names[-1] if self._names else self._root
        parts = [before, np.asarray(tokens, np.int64).tobytes()]
        for image in self._images:
            if image.start < start + self._block_size and start < image.end:
                parts += [(image.start - start).to_bytes(8, "little", signed=True), image.digest.encode(), b"\0"]
        return _digest(*parts)


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=_DIGEST_BYTES).digest()
