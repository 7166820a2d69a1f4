"""What chat completions and completions have in common: how tokens are drawn and where an answer ends."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.protocol.openai.base import NotListed, NotSupported, NotTrue, StrictModel, shape_of
from server.protocol.openai.structure import StructureFields

MAX_ANSWERS = 16  # n
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024  # characters
MAX_STOP_TOKENS = 128
MAX_BIASES = 1024
MAX_LOGPROBS = 20

StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class StreamOptions(StrictModel):
    include_usage: bool | None = None


class SamplingFields(StructureFields):
    """The fields of both kinds of request."""

    model: str = Field(min_length=1, max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, description="0: greedy. Default 1.")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1: off.")
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    stop: (
        Annotated[
            Annotated[StopString, Tag("<string>")]
            | Annotated[list[StopString], Tag("<list>"), Field(max_length=MAX_STOPS)],
            Discriminator(shape_of),
        ]
        | None
    ) = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOP_TOKENS)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=MAX_BIASES)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = Field(None, description="Default true.")
    user: str | None = None
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="Prompts and images are cached apart for each salt."
    )

    # Each of these would change the answer; saying nothing would be a wrong answer.
    include_stop_str_in_output: NotTrue = None
    use_beam_search: NotTrue = None
    prompt_logprobs: NotSupported = None
    logits_processors: NotListed = None
    bad_words: NotListed = None
    allowed_token_ids: NotListed = None
    truncate_prompt_tokens: NotSupported = None

    @model_validator(mode="after")
    def _options_of_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options is only for streaming: set stream to true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def answers(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)
