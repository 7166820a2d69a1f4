"""Tools in a conversation: what a chat template is given about them, and whether it has a place for them.

The form in which a model of the Hermes and Qwen families writes a call, `<tool_call>{...}</tool_call>`, is the only one
that is known here. A template that shows tools but not this form counts as one without tools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from model.errors import PromptError

ToolFormat = Literal["hermes"]

_NAME, _ARGUMENT, _RESULT = "probe_of_a_tool", "probe_of_an_argument", "probe of a result"


@dataclass(frozen=True)
class ToolCard:
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class ToolUse:
    """A call that the assistant made earlier in the conversation."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


def tool_values(tools: Sequence[ToolCard], hide: Callable[[str], str]) -> list[dict[str, Any]]:
    """As templates want them; every text that people wrote goes through `hide`."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": hide(tool.description),
                "parameters": hidden(tool.parameters, hide),
            },
        }
        for tool in tools
    ]


def use_values(uses: Sequence[ToolUse], hide: Callable[[str], str]) -> list[dict[str, Any]]:
    return [
        {
            "id": hide(use.id),
            "type": "function",
            "function": {"name": use.name, "arguments": hidden(use.arguments, hide)},
        }
        for use in uses
    ]


def hidden(value: Any, hide: Callable[[str], str]) -> Any:
    """The value with every text in it hidden, keys too."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {hide(str(key)): hidden(part, hide) for key, part in value.items()}
    return [hidden(part, hide) for part in value] if isinstance(value, list) else value


def find_format(render: Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]) -> ToolFormat | None:
    """Renders a small conversation with a tool, its call and its result: all must be seen in it."""
    tools = tool_values([ToolCard(_NAME, "", {"type": "object", "properties": {}})], str)
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "", "tool_calls": use_values([ToolUse(_NAME, {_ARGUMENT: 1}, "1")], str)},
        {"role": "tool", "content": _RESULT, "tool_call_id": "1", "name": _NAME},
    ]
    try:
        shown = render(conversation[:1], tools)
        whole = render(conversation, tools)
    except PromptError:
        return None
    complete = _NAME in shown and _ARGUMENT in whole and _RESULT in whole
    return "hermes" if complete and "<tool_call>" in whole else None
