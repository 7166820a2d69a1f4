"""Headers that travel with a request from client to controller to worker, beside OpenAI's."""

from __future__ import annotations

import re

from server.protocol.errors import ApiError, bad_request

TIMEOUT = "X-Request-Timeout"  # seconds that are left for the request; decimal
TENANT = "X-Tephra-Tenant"  # whose caches a request may use; believed from a controller alone

DEADLINE_EXCEEDED = "deadline_exceeded"  # code of the error
MAX_SECONDS = 1_000_000.0
_SECONDS = re.compile(r"\d{1,7}(\.\d{1,9})?|\.\d{1,9}")


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


def deadline_exceeded(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"The answer was not complete within the {seconds:g} s that the request may take.",
        type="server_error",
        code=DEADLINE_EXCEEDED,
    )
