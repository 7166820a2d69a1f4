"""Every refusal that a client can meet: its status, the code that tells it from others, and when it comes.

Worded for the document; where each is raised is the matter of the rooms that raise it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    status: int
    code: str | None  # None: the error's `code` is null
    when: str


MEANINGS = {
    400: "The request cannot be answered as it is; `param` names the field, the message says what was expected",
    401: "Missing or wrong key",
    403: "The key does not allow this",
    404: "There is no such thing here",
    408: "The body did not arrive in time",
    413: "Too large",
    415: "The body is not JSON",
    422: "The request is quarantined",
    429: "Full, or beyond a limit of the key; see Retry-After",
    431: "The headers are too many or too large",
    500: "A fault of the server, logged under the request's id",
    502: "A worker behind the controller failed with this status",
    503: "Nobody can answer right now; see Retry-After",
    504: "The request's time is over",
}

EVERYWHERE = (
    Refusal(400, "invalid_host", "No Host header, several, or one that names no host"),
    Refusal(431, None, "More than 128 headers, or more than 32 KiB of them with the address"),
    Refusal(500, "internal_error", "A fault of the controller"),
    Refusal(503, "too_many_connections", "All of --max-connections have a request under way"),
)
CLIENT_KEY = (
    Refusal(401, "invalid_api_key", "No key, a wrong one, or more than one Authorization header"),
    Refusal(401, "api_key_revoked", "The key was revoked"),
    Refusal(401, "api_key_expired", "The key's time is over"),
)
MODEL_OF_KEY = (Refusal(403, "model_not_allowed", "The key may not use the model, whether or not there is one"),)
NO_MODEL = (Refusal(404, "model_not_found", "No model of that name is served"),)
BODY = (
    Refusal(400, None, "The body is no JSON object, or a field is missing or makes no sense"),
    Refusal(400, "duplicate_field", "A name stands twice in one object"),
    Refusal(408, "request_timeout", "The body did not arrive within --body-seconds"),
    Refusal(413, "request_too_large", "The body, or what it refers to, is larger than accepted"),
    Refusal(415, None, "Another Content-Type than application/json, or a compressed body"),
)
ADMISSION = (
    Refusal(400, "invalid_timeout", "X-Request-Timeout is no number of seconds"),
    Refusal(404, "version_not_found", "The model is served, but not in the version that was asked for"),
    Refusal(429, "overloaded", "The controller, or every worker of the model, has as much in hand as it may"),
    Refusal(429, "rate_limit_exceeded", "A limit of the key; the message names it"),
    Refusal(503, "limits_unavailable", "The key has limits, and Redis, which keeps them, cannot be reached"),
    Refusal(503, "unavailable", "No worker of the model can answer, or the controller is stopping"),
    Refusal(504, "deadline_exceeded", "The time of X-Request-Timeout, or --request-seconds, is over"),
)
PICTURES = (
    Refusal(400, "invalid_image", "A picture cannot be read, or is of a kind that is not accepted"),
    Refusal(400, "invalid_image_url", "A picture's URL is malformed"),
    Refusal(400, "image_url_not_allowed", "A picture's URL leads where pictures are not fetched from"),
    Refusal(400, "image_fetch_failed", "A picture could not be fetched"),
    Refusal(400, "images_not_supported", "The model takes no pictures"),
    Refusal(400, "too_many_images", "More pictures than the model takes in one request"),
    Refusal(400, "too_many_pixels", "The pictures together hold more pixels than accepted"),
)
CONTEXT = (Refusal(400, "context_length_exceeded", "Prompt and answer do not fit the model's context"),)
WORKERS = (
    Refusal(400, "unsupported_parameter", "A field asks for what is not supported"),
    Refusal(400, "invalid_prompt", "The chat template refuses the conversation"),
    Refusal(400, "worker_error", "A worker refused without saying why"),
    Refusal(404, "worker_error", "The model's worker has no such route"),
    Refusal(413, "worker_error", "A worker refused the size without saying why"),
    Refusal(
        422, "request_quarantined", "Two workers were lost at this very request, so it is not tried again for a time"
    ),
    Refusal(422, "worker_error", "A worker refused without saying why"),
    Refusal(429, "worker_error", "A worker is full"),
    Refusal(502, None, "Passed on from a worker that has others behind it"),
)
NO_TOOLS = Refusal(400, "tools_not_supported", "The model's template has no form for tools; name or require a call")
ANSWERS = (
    NO_TOOLS,
    Refusal(400, "invalid_grammar", "A schema, expression or grammar for the answer's form cannot be used"),
    Refusal(400, "grammar_failed", "The answer's form took more work than allowed"),
    Refusal(400, "engine_refused", "The request is larger than the engine's memory"),
    Refusal(500, "engine_error", "The engine failed at the answer"),
    Refusal(503, "engine_error", "The engine is gone"),
)
STREAMS = (Refusal(502, "stream_broken", "Within a stream: its worker was lost, and no other could carry it on"),)
ADMIN_KEY = (
    Refusal(401, "invalid_admin_key", "The controller has an admin key, and this is not it"),
    Refusal(403, "admin_key_not_configured", "The controller has no admin key, and this needs one from here"),
)
NO_WINDOW = (Refusal(400, None, "`window` is none of the spans that are kept"),)
NO_WORKER = (Refusal(404, "worker_not_found", "No worker of that id is registered"),)
REDIS_LOST = (Refusal(503, "unavailable", "Redis, which keeps it, cannot be reached; nothing was changed"),)
NOT_READY = (Refusal(503, "unavailable", "No worker is healthy, or the controller is stopping"),)
WORKER_SECRET = (Refusal(401, "invalid_worker_secret", "Not the controller's TEPHRA_WORKER_SECRET"),)
REPORT = (
    Refusal(400, None, "The body is not of the shape; `param` names the field"),
    Refusal(408, "request_timeout", "The body did not arrive within ten seconds"),
    Refusal(413, "request_too_large", "The body is larger than 256 KiB"),
)
NO_FILE = (Refusal(404, "not_found", "There is nothing at this path"),)

# Of paths and methods that are not in the document, and so of none of its operations.
ELSEWHERE = (
    Refusal(404, "not_found", "There is nothing at this path"),
    Refusal(405, "method_not_allowed", "The path takes other methods, which the header Allow lists"),
)


def by_status(refusals: Iterable[Refusal]) -> dict[int, list[Refusal]]:
    """In the order of the statuses."""
    groups: dict[int, list[Refusal]] = defaultdict(list)
    for refusal in refusals:
        groups[refusal.status].append(refusal)
    return dict(sorted(groups.items()))
