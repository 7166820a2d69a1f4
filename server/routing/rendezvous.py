"""Rendezvous hashing: an order of the workers for every key, the same at every controller, with nothing shared.

When a worker joins or leaves, only the keys that it is first for move (Thaler and Ravishankar, 1998).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from server.routing.base import Chosen

MAX_KEY = 64  # bytes, as blake2b takes them


def preference(key: bytes, candidates: Sequence[Chosen]) -> list[Chosen]:
    """The candidates, the one to ask first in front. `key`: a digest, of at most MAX_KEY bytes."""
    return sorted(candidates, key=lambda one: (_score(key, one.id), one.id), reverse=True)


def _score(key: bytes, worker_id: str) -> bytes:
    return hashlib.blake2b(worker_id.encode(), key=key, digest_size=8).digest()
