"""What a chat request says about tools, held against what the checkpoint's chat template can do with them.

Raises ApiErrors because they are written for the client; knows nothing of how calls are forced or read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.prompts import ChatMessage, TextPart, ToolCard, ToolUse
from model.prompts.tools import ToolFormat
from server.protocol.errors import bad_request
from server.protocol.openai import ChatCompletionRequest, FunctionDefinition, Message, NamedToolChoice
from server.protocol.openai.messages import uses_tools

_NO_PLACE = "the chat template of this model has no place for tools"
_ASKED = (
    "Answer with a call of one of these functions, as a JSON object with its name and arguments. The functions, one a "
    "line, with the JSON schemas of their arguments:"
)


@dataclass(frozen=True)
class Calling:
    """The functions that an answer may call. `forced`: it must be calls and nothing else."""

    functions: tuple[FunctionDefinition, ...]
    forced: bool
    named: bool  # the request names the one function
    several: bool  # more than one call is welcome
    layout: ToolFormat | None  # how the checkpoint's model writes calls

    @property
    def cards(self) -> tuple[ToolCard, ...]:
        return tuple(ToolCard(one.name, one.description or "", one.parameters or {}) for one in self.functions)


def read_calling(request: ChatCompletionRequest, layout: ToolFormat | None) -> Calling | None:
    """None where the answer calls nothing. Raises ApiError 400."""
    if layout is None and (place := uses_tools(request.messages)) is not None:
        raise bad_request(
            f"messages[{place}]: {_NO_PLACE}, so it can show neither calls nor their results. "
            "Tell what they said in messages of user and assistant.",
            param=f"messages[{place}]",
            code="tools_not_supported",
        )
    functions = tuple(tool.function for tool in request.tools or ())
    if not functions or request.tool_choice == "none":
        return None
    forced = request.tool_choice not in (None, "auto")
    if not forced and layout is None:
        raise bad_request(
            f"tool_choice 'auto' cannot be had: {_NO_PLACE}. Use 'required' or name a function, which force a call; "
            "or 'none'.",
            param="tool_choice",
            code="tools_not_supported",
        )
    if (asked := request.structure()) is not None:
        raise bad_request(
            f"{asked.param} cannot be used together with tools: an answer has one form. Leave one of them out, or set "
            "tool_choice to 'none'.",
            param=asked.param,
        )
    if isinstance(request.tool_choice, NamedToolChoice):
        wanted = request.tool_choice.function.name
        functions = tuple(function for function in functions if function.name == wanted)
    named = isinstance(request.tool_choice, NamedToolChoice)
    return Calling(functions, forced, named, not named and request.parallel_tool_calls is not False, layout)


def tool_uses(message: Message, place: int) -> tuple[ToolUse, ...]:
    """The calls of an earlier answer. Raises ApiError 400 for arguments that are no JSON object."""
    uses = []
    for number, call in enumerate(message.tool_calls or ()):
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            path = f"messages[{place}].tool_calls[{number}].function.arguments"
            raise bad_request(f"{path}: expected a JSON object, as text.", param=path)
        uses.append(ToolUse(call.function.name, arguments, call.id))
    return tuple(uses)


def with_functions_told(messages: Sequence[ChatMessage], cards: Sequence[ToolCard]) -> list[ChatMessage]:
    """For templates without tools: the functions stand in the system message, so that the model knows what they do."""
    lines = [json.dumps({"name": c.name, "description": c.description, "parameters": c.parameters}) for c in cards]
    told = TextPart("\n".join([_ASKED, *lines]))
    if messages and messages[0].role == "system":
        first = replace(messages[0], parts=(*messages[0].parts, TextPart("\n\n"), told))
        return [first, *messages[1:]]
    return [ChatMessage("system", (told,)), *messages]
