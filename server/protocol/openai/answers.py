"""Answers, whole and in chunks of a stream."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from server.protocol.openai.base import StrictModel

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(StrictModel):
    cached_tokens: int
    image_tokens: int = 0


class Usage(StrictModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(StrictModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(StrictModel):
    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(StrictModel):
    name: str
    arguments: str = Field(description="A JSON object, as text.")


class AnswerToolCall(StrictModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(StrictModel):
    role: Literal["assistant"]
    content: str | None = Field(description="Null in an answer that is nothing but calls.")
    tool_calls: list[AnswerToolCall] | None = None
    refusal: None = None


class ChatChoice(StrictModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(StrictModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str = Field(description="The version of the weights that the whole answer was computed on.")
    choices: list[ChatChoice]
    usage: Usage


class CalledFunctionDelta(StrictModel):
    name: str | None = None
    arguments: str


class ToolCallDelta(StrictModel):
    """The first of a call has its id, type and name; the arguments of all put together are the call's."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionDelta


class Delta(StrictModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(StrictModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(StrictModel):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(StrictModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(StrictModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(StrictModel):
    """Also the shape of a streamed chunk."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
