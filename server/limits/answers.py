"""What clients are told of their limits: OpenAI's `x-ratelimit-*` headers, and the 429 that names the limit."""

from __future__ import annotations

import math

from server.auth.api_key import ApiKey
from server.limits.verdict import Cost, Verdict
from server.protocol.errors import ApiError

Headers = list[tuple[bytes, bytes]]


def limit_headers(verdict: Verdict) -> Headers:
    return [
        (f"x-ratelimit-{what}-{name}".encode(), value.encode())
        for name, bucket in verdict.buckets.items()
        for what, value in (
            ("limit", str(bucket.limit)),
            ("remaining", str(bucket.remaining)),
            ("reset", duration(bucket.reset_seconds)),
        )
    ]


def duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 12s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(max(0.0, seconds) * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"


def limit_exceeded(key: ApiKey, verdict: Verdict, cost: Cost) -> ApiError:
    """429, with the time after which to come back; where no time would help, it says so to clients that repeat."""
    assert verdict.refused is not None
    if verdict.refused == "concurrent":
        return too_many_at_once(key)
    bucket = verdict.buckets[verdict.refused]
    amount = getattr(cost, verdict.refused)
    asked = f"Rate limit of the key {key.name!r}: {bucket.limit} {verdict.refused} a minute, {bucket.remaining} left"
    if amount > bucket.limit:
        message = f"{asked}; this request alone needs {amount}. Make it smaller."
        return _refused(message, {"x-should-retry": "false"})
    seconds = max(1, math.ceil(verdict.retry_seconds))
    message = f"{asked}, {amount} needed. Try again in {seconds} s."
    return _refused(message, {"Retry-After": str(seconds)})


def too_many_at_once(key: ApiKey) -> ApiError:
    most = key.limits.concurrent
    message = f"Rate limit of the key {key.name!r}: at most {most} at once, and so many are under way. Try again soon."
    return _refused(message, {"Retry-After": "1"})


def limits_unavailable() -> ApiError:
    message = "The limits of this key cannot be checked right now; try again shortly."
    return ApiError(503, message, type="server_error", code="limits_unavailable", headers={"Retry-After": "1"})


def _refused(message: str, headers: dict[str, str]) -> ApiError:
    return ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)
