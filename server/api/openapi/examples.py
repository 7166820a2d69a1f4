"""Requests that work when sent as they stand, to a controller whose model is called demo, and what comes back."""

from __future__ import annotations

from typing import Any

from server.api.openapi.operation import Example

Json = dict[str, Any]

# A red square of 32 by 32 pixels.
PICTURE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAKklEQVR42mM4ISdHU8QwasGoBaMWjFowasGoBaMWjFowasGoBaMWDBULACXL"
    "ED1gHZEpAAAAAElFTkSuQmCC"
)
_SCHEMA: Json = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["red", "green", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
_TOOL: Json = {
    "type": "function",
    "function": {"name": "tell_colour", "description": "Tells the colour of a thing.", "parameters": _SCHEMA},
}


def _asked(*content: Json | str, **fields: Any) -> Json:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    text = content[0] if len(content) == 1 and isinstance(content[0], str) else parts
    return {"model": "demo", "messages": [{"role": "user", "content": text}], "max_tokens": 32, **fields}


_SHOWN: Json = {"type": "image_url", "image_url": {"url": PICTURE}}

CHAT = (
    Example("picture", "A question about a picture", _asked(_SHOWN, "Which colour is this?")),
    Example("text", "Text alone", _asked("Good morning!")),
    Example(
        "conversation",
        "Earlier turns, and their pictures, are still seen",
        {
            "model": "demo",
            "messages": [
                {"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": [_SHOWN, {"type": "text", "text": "Which colour is this?"}]},
                {"role": "assistant", "content": "Red."},
                {"role": "user", "content": "And its shape?"},
            ],
            "max_tokens": 8,
        },
    ),
    Example(
        "stream",
        "In pieces as they are computed, with the counts of tokens at the end",
        _asked(_SHOWN, "What is this?", stream=True, stream_options={"include_usage": True}),
    ),
    Example(
        "drawn",
        "Two answers drawn by a seed, with the likeliest rivals of each token",
        _asked("Name a colour.", n=2, temperature=0.8, top_p=0.9, seed=7, stop=["."], logprobs=True, top_logprobs=2),
    ),
    Example(
        "json_schema",
        "An answer that follows a schema",
        _asked(
            _SHOWN,
            "Which colour is this? Answer as JSON.",
            response_format={"type": "json_schema", "json_schema": {"name": "colour", "schema": _SCHEMA}},
        ),
    ),
    Example(
        "tool",
        "A call of a function that the request requires",
        _asked(_SHOWN, "Which colour is this?", tools=[_TOOL], tool_choice="required", max_tokens=64),
    ),
)
TEXT = (
    Example("text", "One prompt", {"model": "demo", "prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}),
    Example(
        "stream",
        "In pieces as they are computed",
        {"model": "demo", "prompt": "One, two,", "max_tokens": 8, "stream": True},
    ),
    Example(
        "several",
        "Two prompts, with the logarithms of their tokens' probabilities",
        {"model": "demo", "prompt": ["The sky is", "The grass is"], "max_tokens": 4, "logprobs": 1},
    ),
    Example(
        "choice",
        "One of two answers, by vLLM's field",
        {"model": "demo", "prompt": "Is a tomato red? ", "guided_choice": ["yes", "no"]},
    ),
)
TOKENIZE = (
    Example("prompt", "A raw prompt", {"model": "demo", "prompt": "Hello, world!", "return_token_strs": True}),
    Example(
        "conversation",
        "A conversation with a picture",
        {
            "model": "demo",
            "messages": [{"role": "user", "content": [_SHOWN, {"type": "text", "text": "Which colour is this?"}]}],
        },
    ),
)
DETOKENIZE = (Example("tokens", "Three tokens", {"model": "demo", "tokens": [72, 101, 121]}),)
IMAGE_TOKENS = (
    Example(
        "sizes",
        "Two pictures by their sizes",
        {"model": "demo", "images": [{"width": 1024, "height": 768}, {"width": 300, "height": 900}]},
    ),
    Example("picture", "A picture itself", {"model": "demo", "images": [{"url": PICTURE}]}),
)
REGISTRATION = (
    Example(
        "worker",
        "A worker that serves the model demo",
        {
            "worker_id": "worker-1",
            "url": "http://127.0.0.1:8001",
            "model": {
                "name": "demo",
                "version": "v1",
                "context_length": 2048,
                "created": 1767225600,
                "image": {"tile": 336, "grid": 24, "canvases": [[672, 336], [336, 672], [672, 672]]},
                "max_images": 16,
                "structured_output": True,
                "tools": "forced",
                "logprobs": True,
            },
            "engine": "native",
            "device": "cpu",
            "max_running": 16,
            "started_at": 1767225600.0,
        },
    ),
)
HEARTBEAT = (
    Example(
        "busy",
        "Two requests are computed, one waits",
        {"load": {"running": 2, "waiting": 1, "outstanding_tokens": 900, "kv_usage": 0.25, "kv_tokens": 4096}},
    ),
)

_USAGE: Json = {
    "prompt_tokens": 24,
    "completion_tokens": 2,
    "total_tokens": 26,
    "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 12},
}
CHAT_ANSWER: Json = {
    "id": "chatcmpl-5f0c7d2b9a414be0",
    "object": "chat.completion",
    "created": 1767225600,
    "model": "demo",
    "system_fingerprint": "v1",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Red."},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": _USAGE,
}
TEXT_ANSWER: Json = {
    "id": "cmpl-5f0c7d2b9a414be0",
    "object": "text_completion",
    "created": 1767225600,
    "model": "demo",
    "system_fingerprint": "v1",
    "choices": [{"index": 0, "text": " there was", "logprobs": None, "finish_reason": "length"}],
    "usage": _USAGE,
}
