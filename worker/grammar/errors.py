"""Why a form cannot be had; the messages are fit for the client."""

from __future__ import annotations

import re

_SHOWN = 300  # characters of a library's message
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class GrammarError(Exception):
    """The form that was asked for is no form, is too large, or cannot be followed."""


class GrammarBusy(Exception):
    """Too many forms wait to be compiled."""


def plain(message: str) -> str:
    """A library's message as one short line of plain characters, without the pictures that it draws of the place."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["it cannot be read"]
    reasons = [line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")]
    return _UNPRINTABLE.sub(" ", ": ".join([lines[0].rstrip(":"), *reasons]))[:_SHOWN]
