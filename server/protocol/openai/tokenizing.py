"""Tokenizing and its reverse, as vLLM names the fields."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.protocol.openai.base import NotListed, NotSupported, NotTrue, StrictModel, neutral
from server.protocol.openai.messages import MAX_MESSAGES, Message
from server.protocol.openai.sampling import TokenId
from server.protocol.openai.tools import MAX_TOOLS, Tool

MAX_TEXT = 4_000_000  # characters of a prompt to tokenize
MAX_TOKENS = 1_000_000  # to put back into text

ModelName = Annotated[str, Field(min_length=1, max_length=256, description="As GET /v1/models lists it.")]


class TokenizeRequest(StrictModel):
    """Either a raw prompt, as completions take it, or a conversation, as chat completions do."""

    model: ModelName
    prompt: str | None = Field(None, max_length=MAX_TEXT)
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS, description="Of a conversation.")
    add_special_tokens: bool | None = Field(
        None,
        description="Of a prompt, default true: what the tokenizer puts first (BOS). In a conversation the chat "
        "template decides, whatever stands here.",
    )
    return_token_strs: bool | None = Field(None, description="Also each token's own text. Default false.")

    add_generation_prompt: Annotated[Any, neutral(True), Field(description="Only true is supported.")] = None
    continue_final_message: NotTrue = None
    chat_template: NotSupported = None
    chat_template_kwargs: NotListed = None
    mm_processor_kwargs: NotListed = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("prompt", "send either prompt or messages")
        if self.tools and self.messages is None:
            raise PydanticCustomError("tools", "tools need messages")
        return self


class TokenizeResponse(StrictModel):
    count: int
    max_model_len: int = Field(description="Context length: tokens of prompt and answer together.")
    tokens: list[int] = Field(description="As the model sees them: each picture is its run of image tokens.")
    token_strs: list[str] | None = None
    image_tokens: int = Field(description="How many of the tokens are the pictures'.")


class DetokenizeRequest(StrictModel):
    model: ModelName
    tokens: list[TokenId] = Field(max_length=MAX_TOKENS)


class DetokenizeResponse(StrictModel):
    prompt: str = Field(description="Special tokens stand in it by name.")
