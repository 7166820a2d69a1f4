"""The documented request and response schema of chat completions and completions, as OpenAI and vLLM name the fields.

Pure Python, shared by controller and worker. Types are strict ("1" is no number) and every list is bounded. A field
whose neglect would silently change the answer (tools, response_format, echo ...) is declared here and refused with
words; any other unknown field is ignored. What a checkpoint can do (context, vocabulary) is not known here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_ANSWERS = 16  # n
MAX_PROMPTS = 32  # prompts in one completions request
MAX_MESSAGES = 2048
MAX_PARTS = 1024  # content parts in one message
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024  # characters
MAX_STOP_TOKENS = 128
MAX_BIASES = 1024
MAX_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16  # what OpenAI documents for /v1/completions; chat has no such default

Role = Literal["system", "developer", "user", "assistant", "tool"]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def _shape(value: object) -> str:
    """The union branch for a value. Tags stand in angle brackets so that `validation` can leave them out of paths."""
    if isinstance(value, list):
        return "<list>"
    return "<object>" if isinstance(value, (dict, BaseModel)) else "<string>"


def _part_kind(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("text", "image_url") else None


def _neutral(*allowed: object) -> AfterValidator:
    """Accepts null and the values that ask for nothing; refuses the rest, naming the field."""

    def check(value: object, info: ValidationInfo) -> object:
        if value is None or any(type(value) is type(one) and value == one for one in allowed):
            return value
        raise PydanticCustomError("unsupported", "is not supported by this engine yet; leave it out")

    return AfterValidator(check)


NotSupported = Annotated[Any, _neutral(), Field(description="Not supported yet: refused with 400 unless null.")]
NotTrue = Annotated[Any, _neutral(False), Field(description="Not supported yet: refused with 400 unless false.")]
NotListed = Annotated[Any, _neutral([], {}), Field(description="Not supported yet: refused with 400 unless empty.")]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class ImageUrl(_Model):
    url: str = Field(description="data:image/png;base64,... or http(s)://...")
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Accepted for compatibility: the checkpoint decides how an image is tiled."
    )


class TextContent(_Model):
    type: Literal["text"]
    text: str


class ImageContent(_Model):
    type: Literal["image_url"]
    image_url: Annotated[Annotated[str, Tag("<string>")] | Annotated[ImageUrl, Tag("<object>")], Discriminator(_shape)]

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


ContentPart = Annotated[
    Annotated[TextContent, Tag("<text>")] | Annotated[ImageContent, Tag("<image_url>")],
    Discriminator(
        _part_kind,
        custom_error_type="content_type",
        custom_error_message="type must be 'text' or 'image_url'; other kinds of content are not supported",
    ),
]


class Message(_Model):
    role: Role
    content: Annotated[
        Annotated[str, Tag("<string>")]
        | Annotated[list[ContentPart], Tag("<list>"), Field(min_length=1, max_length=MAX_PARTS)],
        Discriminator(_shape),
    ]
    name: str | None = Field(None, description="Ignored: the templates of this family have no place for it.")
    tool_calls: NotListed = None
    function_call: NotSupported = None
    audio: NotSupported = None

    @property
    def parts(self) -> list[TextContent | ImageContent]:
        if isinstance(self.content, str):
            return [TextContent(type="text", text=self.content)]
        return list(self.content)

    @model_validator(mode="after")
    def _images_from_users(self) -> Self:
        if self.role != "user" and any(isinstance(part, ImageContent) for part in self.parts):
            raise PydanticCustomError("image_role", "images may stand in user messages only")
        return self


class StreamOptions(_Model):
    include_usage: bool | None = None


class SamplingFields(_Model):
    """What chat completions and completions have in common."""

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
            Discriminator(_shape),
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

    # Each of these would change the answer; saying nothing would be a wrong answer.
    include_stop_str_in_output: NotTrue = None
    use_beam_search: NotTrue = None
    prompt_logprobs: NotSupported = None
    logits_processors: NotListed = None
    bad_words: NotListed = None
    allowed_token_ids: NotListed = None
    truncate_prompt_tokens: NotSupported = None
    guided_json: NotSupported = None
    guided_regex: NotSupported = None
    guided_choice: NotSupported = None
    guided_grammar: NotSupported = None
    structured_outputs: NotSupported = None
    response_format: Annotated[
        Any, _neutral({"type": "text"}), Field(description="Only {'type': 'text'} is supported yet.")
    ] = None

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


class ChatCompletionRequest(SamplingFields):
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens of the answer; takes precedence over max_tokens. Default: what the context leaves.",
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    tools: NotListed = None
    tool_choice: Annotated[Any, _neutral("none", "auto"), Field(description="Tools are not supported yet.")] = None
    functions: NotListed = None
    function_call: Annotated[Any, _neutral("none", "auto"), Field(description="Tools are not supported yet.")] = None
    audio: NotSupported = None
    modalities: Annotated[Any, _neutral(["text"]), Field(description="Only ['text'] is supported.")] = None
    web_search_options: NotSupported = None
    continue_final_message: NotTrue = None
    add_generation_prompt: Annotated[Any, _neutral(True), Field(description="Only true is supported.")] = None
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
        Discriminator(_shape),
    ]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    echo: NotTrue = None
    best_of: Annotated[Any, _neutral(1), Field(description="Only 1 is supported.")] = None
    suffix: Annotated[Any, _neutral(""), Field(description="Not supported yet: refused with 400 unless empty.")] = None
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


FinishReason = Literal["stop", "length"]


class PromptTokensDetails(_Model):
    cached_tokens: int
    image_tokens: int = 0


class Usage(_Model):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(_Model):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Model):
    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(_Model):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(_Model):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(_Model):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str = Field(description="The version of the weights that the whole answer was computed on.")
    choices: list[ChatChoice]
    usage: Usage


class Delta(_Model):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(_Model):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(_Model):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(_Model):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(_Model):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(_Model):
    """Also the shape of a streamed chunk."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ModelCapabilities(_Model):
    vision: bool
    max_images: int


class ModelEntry(_Model):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    version: str
    max_model_len: int = Field(description="Context length: tokens of prompt and answer together.")
    capabilities: ModelCapabilities


class ModelList(_Model):
    object: Literal["list"]
    data: list[ModelEntry]


class ErrorDetail(_Model):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(_Model):
    error: ErrorDetail
