"""The two kinds of request."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from server.protocol.openai.base import NotListed, NotSupported, NotTrue, neutral, shape_of
from server.protocol.openai.messages import MAX_MESSAGES, Message
from server.protocol.openai.sampling import MAX_LOGPROBS, SamplingFields
from server.protocol.openai.tools import MAX_TOOLS, NamedToolChoice, Tool, ToolChoice

MAX_PROMPTS = 32  # prompts in one completions request
DEFAULT_COMPLETION_TOKENS = 16  # what OpenAI documents for /v1/completions; chat has no such default


def _distinct(tools: list[Tool] | None) -> list[Tool] | None:
    names = [tool.function.name for tool in tools or ()]
    if len(set(names)) < len(names):
        raise PydanticCustomError("tools", "two functions have the same name")
    return tools


def _among_the_tools(choice: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
    names = {tool.function.name for tool in info.data.get("tools") or ()}
    if choice not in (None, "none", "auto") and "tools" in info.data and not names:
        raise PydanticCustomError("tool_choice", "needs tools")
    if isinstance(choice, NamedToolChoice) and names and choice.function.name not in names:
        raise PydanticCustomError("tool_choice", "names a function that is not among the tools")
    return choice


class ChatCompletionRequest(SamplingFields):
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens of the answer; takes precedence over max_tokens. Default: what the context leaves.",
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    tools: Annotated[list[Tool] | None, AfterValidator(_distinct)] = Field(None, max_length=MAX_TOOLS)
    tool_choice: Annotated[ToolChoice | None, AfterValidator(_among_the_tools)] = Field(
        None,
        description="Default: auto where there are tools. 'auto' needs a chat template that supports tools; "
        "'required' and a named function work with every checkpoint.",
    )
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call. Default true.")
    functions: NotListed = None
    function_call: Annotated[
        Any, neutral("none", "auto"), Field(description="Not supported: use tools and tool_choice.")
    ] = None
    audio: NotSupported = None
    modalities: Annotated[Any, neutral(["text"]), Field(description="Only ['text'] is supported.")] = None
    web_search_options: NotSupported = None
    continue_final_message: NotTrue = None
    add_generation_prompt: Annotated[Any, neutral(True), Field(description="Only true is supported.")] = None
    chat_template: NotSupported = None
    chat_template_kwargs: NotListed = None
    documents: NotListed = None
    mm_processor_kwargs: NotListed = None

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs needs logprobs to be true")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """None: no logprobs; else how many tokens to list beside the drawn one."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(SamplingFields):
    prompt: Annotated[
        Annotated[str, Tag("<string>")]
        | Annotated[list[str], Tag("<list>"), Field(min_length=1, max_length=MAX_PROMPTS)],
        Discriminator(shape_of),
    ]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    echo: NotTrue = None
    best_of: Annotated[Any, neutral(1), Field(description="Only 1 is supported.")] = None
    suffix: Annotated[Any, neutral(""), Field(description="Not supported yet: refused with 400 unless empty.")] = None
    prompt_embeds: NotSupported = None

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)

    @property
    def token_limit(self) -> int:
        return self.max_tokens or DEFAULT_COMPLETION_TOKENS

    @property
    def alternatives(self) -> int | None:
        return self.logprobs
