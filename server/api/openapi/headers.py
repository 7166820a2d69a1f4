"""Headers of requests and answers, as the document describes them."""

from __future__ import annotations

from typing import Any

from server.api.wishes import SESSION, VERSION
from server.protocol.call_headers import TIMEOUT

Json = dict[str, Any]

REQUEST_ID = "X-Request-Id"
SERVED_VERSION = "X-Tephra-Version"
RETRY_AFTER = "Retry-After"
_LIMITS = ("requests", "tokens", "images")


def _asked(name: str, schema: Json, words: str) -> Json:
    return {"name": name, "in": "header", "required": False, "description": words, "schema": schema}


PARAMETERS: dict[str, Json] = {
    REQUEST_ID: _asked(
        REQUEST_ID,
        {"type": "string"},
        "A name for the request, taken over where it has 1 to 64 of the characters A-Z a-z 0-9 . _ : -; else, and "
        "without it, the controller makes one. Answers, log and worker name the request by it.",
    ),
    TIMEOUT: _asked(
        TIMEOUT,
        {"type": "string", "pattern": r"^(\d{1,7}(\.\d{1,9})?|\.\d{1,9})$"},
        "Seconds that the request may take from its arrival on, above 0; never more than the controller allows. "
        "When they are over: 504 `deadline_exceeded`, or that error as the last event of a stream.",
    ),
    VERSION: _asked(
        VERSION,
        {"type": "string", "minLength": 1, "maxLength": 256},
        "Only workers that serve this version of the model may answer. The same as `model` NAME@VERSION.",
    ),
    SESSION: _asked(
        SESSION,
        {"type": "string", "minLength": 1, "maxLength": 256},
        "Requests of the same id go to the same worker while it can take them.",
    ),
}


def _told(schema: Json, words: str, *, always: bool = False) -> Json:
    return {"description": words, "required": always, "schema": schema}


def _limit_headers() -> dict[str, Json]:
    number: Json = {"type": "integer"}
    described: dict[str, Json] = {}
    for name in _LIMITS:
        described[f"x-ratelimit-limit-{name}"] = _told(number, f"Most {name} a minute, where the key has that limit.")
        described[f"x-ratelimit-remaining-{name}"] = _told(number, f"How many {name} are left.")
        described[f"x-ratelimit-reset-{name}"] = _told(
            {"type": "string", "pattern": r"^(\d+ms|\d+s|\d+m\d+s)$"}, f"Until all {name} are back, as 6m0s."
        )
    return described


LIMIT_HEADERS = tuple(_limit_headers())

HEADERS: dict[str, Json] = {
    REQUEST_ID: _told({"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"}, "The request's name.", always=True),
    SERVED_VERSION: _told({"type": "string"}, "The version of the model that answered; also `system_fingerprint`."),
    RETRY_AFTER: _told({"type": "integer", "minimum": 1}, "Seconds after which to come back."),
    "x-should-retry": _told({"const": "false"}, "No time will help: the request is larger than a minute's limit."),
    "WWW-Authenticate": _told({"const": "Bearer"}, "How keys are sent."),
    **_limit_headers(),
}


def parameters(*names: str) -> list[Json]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def headers(*names: str) -> dict[str, Json]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
