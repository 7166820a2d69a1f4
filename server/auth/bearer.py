"""Bearer tokens out of headers, and their digests. Secrets are only ever compared as digests."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]


def digest(key: bytes) -> bytes:
    """SHA-256. Keys are random, so no slow hash is needed to keep them from being guessed."""
    return hashlib.sha256(key).digest()


def bearer(headers: Headers) -> bytes:
    """The token; empty where there is none, another scheme, or more than one Authorization header."""
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1:
        return b""
    scheme, _, key = values[0].partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


class BearerKeys:
    """A set of keys, any of which opens. Compared against every key in constant time, so that neither length nor
    position leaks."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [digest(key.encode()) for key in keys]

    @property
    def required(self) -> bool:
        return bool(self._digests)

    def opens(self, headers: Headers) -> bool:
        given = digest(bearer(headers))
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return any(matches)
