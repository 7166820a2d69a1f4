"""Headers that travel with a request from client to controller to worker, beside OpenAI's, and one that comes back."""

from __future__ import annotations

import re
from collections.abc import Mapping

from server.protocol.errors import ApiError, bad_request

TIMEOUT = "X-Request-Timeout"  # seconds that are left for the request; decimal
TENANT = "X-Tephra-Tenant"  # whose caches a request may use; believed from a controller alone
TIMINGS = "Server-Timing"  # W3C: where the time went at the worker, in milliseconds

DEADLINE_EXCEEDED = "deadline_exceeded"  # code of the error
MAX_SECONDS = 1_000_000.0
_SECONDS = re.compile(r"\d{1,7}(\.\d{1,9})?|\.\d{1,9}")

_TIMING = re.compile(r"(?:^|, ?)(queue|prefill|decode);dur=(\d{1,9}(?:\.\d{1,3})?)(?=,|$)")
_MOST_TIMINGS = 256  # characters


def read_timeout(value: str) -> float:
    """Seconds, above 0. Raises ApiError 400."""
    text = value.strip()
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if not 0 < seconds <= MAX_SECONDS:
        raise bad_request(
            f"{TIMEOUT}: expected a number of seconds above 0, at most {MAX_SECONDS:.0f}.",
            param=TIMEOUT,
            code="invalid_timeout",
        )
    return seconds


def write_timeout(seconds: float) -> str:
    return f"{max(seconds, 0.001):.3f}"


def write_timings(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name};dur={max(0.0, value) * 1000:.1f}" for name, value in seconds.items())


def read_timings(value: str) -> dict[str, float]:
    """Seconds by name, as far as they are told: queue, prefill, decode."""
    return {name: float(text) / 1000 for name, text in _TIMING.findall(value[:_MOST_TIMINGS])}


def deadline_exceeded(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"The answer was not complete within the {seconds:g} s that the request may take.",
        type="server_error",
        code=DEADLINE_EXCEEDED,
    )
