"""How much a request may ask for, held before any worker is asked: the counts of the schema, by the same constants.

Types, ranges and what belongs together are the schema's; here only what could make a request cost out of proportion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.protocol.errors import ApiError, bad_request
from server.protocol.openai.messages import MAX_MESSAGES, MAX_PARTS
from server.protocol.openai.requests import MAX_PROMPTS
from server.protocol.openai.sampling import (
    MAX_ANSWERS,
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_STOP_LENGTH,
    MAX_STOP_TOKENS,
    MAX_STOPS,
)
from server.protocol.openai.structure import MAX_CHOICES
from server.protocol.openai.tools import MAX_TOOL_CALLS, MAX_TOOLS

_LONGEST_TOKEN = 128  # characters: no vocabulary of the family has a longer one

_NUMBERS = {
    "n": MAX_ANSWERS,
    "best_of": MAX_ANSWERS,
    "logprobs": MAX_LOGPROBS,
    "top_logprobs": MAX_LOGPROBS,
    "prompt_logprobs": MAX_LOGPROBS,
}
_LENGTHS = {
    "messages": MAX_MESSAGES,
    "stop": MAX_STOPS,
    "stop_token_ids": MAX_STOP_TOKENS,
    "logit_bias": MAX_BIASES,
    "tools": MAX_TOOLS,
    "functions": MAX_TOOLS,
    "guided_choice": MAX_CHOICES,
}


def check_bounds(payload: Mapping[str, Any]) -> None:
    """Raises ApiError 400 that names the field, the limit and what was found."""
    for field, most in _NUMBERS.items():
        value = payload.get(field)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > most:
            raise _over(field, f"at most {most}", f"{value:.6g}")
    for field, most in _LENGTHS.items():
        value = payload.get(field)
        if isinstance(value, (list, dict)) and len(value) > most:
            raise _over(field, f"at most {most} entries", str(len(value)))
    _check_stops(payload.get("stop"))
    _check_prompts(payload.get("prompt"))
    _check_messages(payload.get("messages"))


def least_tokens(payload: Mapping[str, Any]) -> int:
    """A number of tokens that the text of a request has at the very least, whatever the tokenizer."""
    prompt = payload.get("prompt")
    if isinstance(prompt, str):
        return len(prompt) // _LONGEST_TOKEN
    if isinstance(prompt, list):
        if any(isinstance(one, int) for one in prompt):
            return len(prompt)
        return max((len(one) // _LONGEST_TOKEN for one in prompt if isinstance(one, str)), default=0)
    messages = payload.get("messages")
    texts = [_characters(message) for message in messages] if isinstance(messages, list) else []
    return sum(texts) // _LONGEST_TOKEN


def check_context(payload: Mapping[str, Any], image_tokens: int, context_length: int) -> None:
    """Raises ApiError 400 when prompt and answer cannot fit, however well the text is tokenized."""
    wanted = next(
        (
            value
            for field in ("max_completion_tokens", "max_tokens")
            if isinstance(value := payload.get(field), int) and not isinstance(value, bool) and value > 0
        ),
        0,
    )
    least = least_tokens(payload) + image_tokens
    if least + max(wanted, 1) <= context_length:
        return
    of_images = f", {image_tokens} of them the images'" if image_tokens else ""
    asked = f" and {wanted} were asked for the answer (max_tokens)" if wanted else ""
    raise bad_request(
        f"The context of this model is {context_length} tokens, but the prompt has at least {least}{of_images}{asked}. "
        "Shorten the prompt, send fewer or smaller images, or lower max_tokens.",
        param="messages" if "messages" in payload else "prompt",
        code="context_length_exceeded",
    )


def _check_stops(stop: object) -> None:
    for text in stop if isinstance(stop, list) else [stop]:
        if isinstance(text, str) and len(text) > MAX_STOP_LENGTH:
            raise _over("stop", f"at most {MAX_STOP_LENGTH} characters", str(len(text)))


def _check_prompts(prompt: object) -> None:
    """A list of integers is one prompt, given as tokens."""
    if isinstance(prompt, list) and len(prompt) > MAX_PROMPTS and not all(isinstance(one, int) for one in prompt):
        raise _over("prompt", f"at most {MAX_PROMPTS} prompts", str(len(prompt)))


def _check_messages(messages: object) -> None:
    for place, message in enumerate(messages if isinstance(messages, list) else ()):
        for field, most in (("content", MAX_PARTS), ("tool_calls", MAX_TOOL_CALLS)):
            value = message.get(field) if isinstance(message, dict) else None
            if isinstance(value, list) and len(value) > most:
                raise _over(f"messages[{place}].{field}", f"at most {most} entries", str(len(value)))


def _characters(message: object) -> int:
    """Without what a chat template may strip from the ends."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return len(content.strip())
    texts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return sum(len(text.strip()) for text in texts if isinstance(text, str))


def _over(field: str, expected: str, found: str) -> ApiError:
    return bad_request(f"{field}: expected {expected}, found {found}.", param=field)
