"""What clients are served: generation, tokens, models."""

from __future__ import annotations

from server.api.image_tokens import PATH as IMAGE_TOKENS
from server.api.image_tokens import ImageTokensRequest, ImageTokensResponse
from server.api.models import Model, ModelList
from server.api.openapi import examples, refusals
from server.api.openapi.headers import LIMIT_HEADERS
from server.api.openapi.operation import Answer, Operation, PathParameter
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
_CALL = (*_MODEL, *refusals.BODY, *refusals.ADMISSION)
_GENERATION = (*_CALL, *refusals.WORKERS, *refusals.CONTEXT, *refusals.ANSWERS, *refusals.STREAMS)
_CALL_HEADERS = (TIMEOUT, VERSION, SESSION)

_STREAMED = "The answer; with `stream` true, its pieces as server-sent events."
_TOKENIZE = "Nothing is generated: of a key's limits it takes a request and the pictures, no tokens. "
_TOKENS = TokenizeResponse(count=5, max_model_len=2048, tokens=[1, 15043, 29892, 3186, 29991], image_tokens=0)


def _tokenizing(path: str) -> Operation:
    return Operation(
        "POST",
        path,
        "Tokens",
        "The tokens of a prompt or conversation",
        (Answer("As the model would see them.", TokenizeResponse, example=_TOKENS.model_dump()),),
        (*_CALL, *refusals.WORKERS, *refusals.PICTURES, *refusals.CONTEXT, refusals.NO_TOOLS),
        key="client",
        words=_TOKENIZE + "A prompt beyond the context has a length like any other.",
        body=TokenizeRequest,
        examples=examples.TOKENIZE,
        asked_headers=_CALL_HEADERS,
        told_headers=LIMIT_HEADERS,
        versioned=True,
    )


def _detokenizing(path: str) -> Operation:
    return Operation(
        "POST",
        path,
        "Tokens",
        "The text of tokens",
        (Answer("Their text.", DetokenizeResponse, example={"prompt": "Hello, world!"}),),
        (*_CALL, *refusals.WORKERS),
        key="client",
        words=_TOKENIZE,
        body=DetokenizeRequest,
        examples=examples.DETOKENIZE,
        asked_headers=_CALL_HEADERS,
        told_headers=LIMIT_HEADERS,
        versioned=True,
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST",
        "/v1/chat/completions",
        "Generation",
        "Answer a conversation, with pictures",
        (Answer(_STREAMED, ChatCompletion, chunk=ChatCompletionChunk, example=examples.CHAT_ANSWER),),
        (*_GENERATION, *refusals.PICTURES),
        key="client",
        words="OpenAI's chat completions and vLLM's further fields. Fields that are neither are ignored; those that "
        "would change the answer and are not supported are refused by name.",
        body=ChatCompletionRequest,
        examples=examples.CHAT,
        asked_headers=_CALL_HEADERS,
        told_headers=LIMIT_HEADERS,
        versioned=True,
    ),
    Operation(
        "POST",
        "/v1/completions",
        "Generation",
        "Continue a text",
        (Answer(_STREAMED, Completion, chunk=Completion, example=examples.TEXT_ANSWER),),
        _GENERATION,
        key="client",
        words="OpenAI's completions: the prompt as it stands, without a chat template and without pictures.",
        body=CompletionRequest,
        examples=examples.TEXT,
        asked_headers=_CALL_HEADERS,
        told_headers=LIMIT_HEADERS,
        versioned=True,
    ),
    _tokenizing("/v1/tokenize"),
    _detokenizing("/v1/detokenize"),
    _tokenizing("/tokenize"),
    _detokenizing("/detokenize"),
    Operation(
        "POST",
        IMAGE_TOKENS,
        "Tokens",
        "What pictures will cost in tokens",
        (Answer("Exactly as every worker counts, from sizes alone; no worker is asked.", ImageTokensResponse),),
        (*_CALL, *refusals.PICTURES),
        key="client",
        words="Pictures may be described by their sizes, or sent: then their headers are read as in a chat.",
        body=ImageTokensRequest,
        examples=examples.IMAGE_TOKENS,
        asked_headers=_CALL_HEADERS,
        told_headers=LIMIT_HEADERS,
    ),
    Operation(
        "GET",
        "/v1/models",
        "Models",
        "List models",
        (Answer("Those that are served and that the key may use.", ModelList),),
        refusals.CLIENT_KEY,
        key="client",
    ),
    Operation(
        "GET",
        "/v1/models/{model}",
        "Models",
        "Describe one model",
        (Answer("What it is and what it can do.", Model),),
        _MODEL,
        key="client",
        path_parameters=(PathParameter("model", "As GET /v1/models lists it; may hold slashes.", "demo"),),
    ),
)
