"""What clients are served: generation, tokens, models."""

from __future__ import annotations

from server.api.image_tokens import PATH as IMAGE_TOKENS
from server.api.image_tokens import ImageTokensRequest, ImageTokensResponse
from server.api.models import Model, ModelList
from server.api.openapi import examples, refusals
from server.api.openapi.headers import LIMIT_HEADERS
from server.api.openapi.operation import TEXT, Answer, Example, Operation, Parameter
from server.api.wishes import SESSION, VERSION
from server.protocol.call_headers import TIMEOUT
from server.protocol.openai import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)

_MODEL = (*refusals.CLIENT_KEY, *refusals.MODEL_OF_KEY, *refusals.NO_MODEL)
_ANY_CALL = (*_MODEL, *refusals.BODY, *refusals.ADMISSION)
_GENERATION = (*_ANY_CALL, *refusals.WORKERS, *refusals.CONTEXT, *refusals.ANSWERS, *refusals.STREAMS)

_STREAMED = "The answer; with `stream` true, its pieces as server-sent events."
_TOKENIZE = "Nothing is generated: of a key's limits it takes a request and the pictures, no tokens. "
_TOKENS = TokenizeResponse(count=5, max_model_len=2048, tokens=[1, 15043, 29892, 3186, 29991], image_tokens=0)


def _call(
    path: str,
    tag: str,
    summary: str,
    answer: Answer,
    refused: tuple[refusals.Refusal, ...],
    body: type,
    examples: tuple[Example, ...],
    words: str,
    *,
    versioned: bool = True,
) -> Operation:
    return Operation(
        "POST",
        path,
        tag,
        summary,
        (answer,),
        refused,
        key="client",
        words=words,
        body=body,
        examples=examples,
        asked_headers=(TIMEOUT, VERSION, SESSION),
        told_headers=LIMIT_HEADERS,
        versioned=versioned,
    )


def _tokenizing(path: str) -> Operation:
    return _call(
        path,
        "Tokens",
        "The tokens of a prompt or conversation",
        Answer("As the model would see them.", TokenizeResponse, example=_TOKENS.model_dump()),
        (*_ANY_CALL, *refusals.WORKERS, *refusals.PICTURES, *refusals.CONTEXT, refusals.NO_TOOLS),
        TokenizeRequest,
        examples.TOKENIZE,
        _TOKENIZE + "A prompt beyond the context has a length like any other.",
    )


def _detokenizing(path: str) -> Operation:
    return _call(
        path,
        "Tokens",
        "The text of tokens",
        Answer("Their text.", DetokenizeResponse, example={"prompt": "Hello, world!"}),
        (*_ANY_CALL, *refusals.WORKERS),
        DetokenizeRequest,
        examples.DETOKENIZE,
        _TOKENIZE,
    )


def _models(
    path: str, summary: str, answer: Answer, refused: tuple[refusals.Refusal, ...], *parts: Parameter
) -> Operation:
    return Operation("GET", path, "Models", summary, (answer,), refused, key="client", parameters=parts)


OPERATIONS: tuple[Operation, ...] = (
    _call(
        "/v1/chat/completions",
        "Generation",
        "Answer a conversation, with pictures",
        Answer(_STREAMED, ChatCompletion, chunk=ChatCompletionChunk, example=examples.CHAT_ANSWER),
        (*_GENERATION, *refusals.PICTURES),
        ChatCompletionRequest,
        examples.CHAT,
        "OpenAI's chat completions and vLLM's further fields. Fields that are neither are ignored; those that would "
        "change the answer and are not supported are refused by name.",
    ),
    _call(
        "/v1/completions",
        "Generation",
        "Continue a text",
        Answer(_STREAMED, Completion, chunk=Completion, example=examples.TEXT_ANSWER),
        _GENERATION,
        CompletionRequest,
        examples.TEXT,
        "OpenAI's completions: the prompt as it stands, without a chat template and without pictures.",
    ),
    _tokenizing("/v1/tokenize"),
    _detokenizing("/v1/detokenize"),
    _tokenizing("/tokenize"),
    _detokenizing("/detokenize"),
    _call(
        IMAGE_TOKENS,
        "Tokens",
        "What pictures will cost in tokens",
        Answer("Exactly as every worker counts, from sizes alone; no worker is asked.", ImageTokensResponse),
        (*_ANY_CALL, *refusals.PICTURES),
        ImageTokensRequest,
        examples.IMAGE_TOKENS,
        "Pictures may be described by their sizes, or sent: then their headers are read as in a chat.",
        versioned=False,
    ),
    _models(
        "/v1/models",
        "List models",
        Answer("Those that are served and that the key may use.", ModelList),
        refusals.CLIENT_KEY,
    ),
    _models(
        "/v1/models/{model}",
        "Describe one model",
        Answer("What it is and what it can do.", Model),
        _MODEL,
        Parameter("model", "As GET /v1/models lists it; may hold slashes.", TEXT, "demo"),
    ),
)
