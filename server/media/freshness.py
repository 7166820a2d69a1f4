"""How long a fetched picture may be kept, by what its server said (RFC 9111 §5.2.2, as far as it matters here)."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SHUT = {"no-store", "no-cache", "private"}
_SECONDS = re.compile(r'"?(\d{1,9})"?')


def keep_seconds(headers: Mapping[str, str], longest: float) -> float:
    """Seconds, at most `longest`; 0: not at all. `headers` must look names up whatever their case."""
    directives = dict(_directive(part) for part in headers.get("Cache-Control", "").split(","))
    if _SHUT & directives.keys() or headers.get("Vary", "").strip() == "*":
        return 0.0
    if "Cache-Control" not in headers and "no-cache" in headers.get("Pragma", "").lower():
        return 0.0
    for name in ("s-maxage", "max-age"):
        if name in directives:
            age = _seconds(headers.get("Age", "0"))
            return max(0.0, min(longest, _seconds(directives[name]) - age))
    return longest


def _directive(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip().lower(), value.strip()


def _seconds(text: str) -> float:
    match = _SECONDS.fullmatch(text.strip())
    return float(match[1]) if match else 0.0
