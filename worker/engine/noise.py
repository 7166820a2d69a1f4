"""The random draws of sampling: one uniform number for each (seed, position), and nothing else goes in.

A counter-based generator rather than a stream with a state: the draw for a position does not depend on what was drawn
before, on the batch, or on the process, so an answer can be repeated or carried on elsewhere.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

_MANTISSA = 53  # bits that a float64 in [0, 1) holds exactly


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for the token at `position` of the answer, under `seed` (unsigned 64 bit)."""
    digest = blake2b(struct.pack("<QQ", seed, position), digest_size=8, person=b"sampling").digest()
    return float(int.from_bytes(digest, "little") >> (64 - _MANTISSA)) * 2.0**-_MANTISSA
