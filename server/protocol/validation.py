"""From a request's bytes to its model, or to a 400 that names the field and never repeats what was sent."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from server.protocol.errors import ApiError, bad_request

Parsed = TypeVar("Parsed", bound=BaseModel)

MAX_PROBLEMS = 3  # named in one message
_CONTROL = re.compile(r"[^\x20-\x7e]")


def parse_request(model: type[Parsed], body: bytes) -> Parsed:
    """Raises ApiError 400."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        return bad_request(f"The body is not valid JSON. {problems[0]['msg'].removeprefix('Invalid JSON: ')}.")
    told = [
        f"{path}: {problem['msg']}" if (path := field_path(problem["loc"])) else problem["msg"] for problem in problems
    ]
    more = f" (and {len(told) - MAX_PROBLEMS} more)" if len(told) > MAX_PROBLEMS else ""
    code = "unsupported_parameter" if problems[0]["type"] == "unsupported" else None
    return bad_request("; ".join(told[:MAX_PROBLEMS]) + more, param=field_path(problems[0]["loc"]) or None, code=code)


def field_path(location: tuple[int | str, ...]) -> str:
    """('messages', 0, 'content', '<list>', 1) -> 'messages[0].content[1]'."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "[key]" and not (step.startswith("<") and step.endswith(">")):
            path += f".{_CONTROL.sub('?', step)[:64]}" if path else _CONTROL.sub("?", step)[:64]
    return path
