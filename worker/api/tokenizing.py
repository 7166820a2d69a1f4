"""POST /tokenize and /detokenize, as vLLM has them, and the same under /v1. No engine takes part."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from server.protocol.errors import model_not_found
from server.protocol.openai import ChatCompletionRequest
from server.protocol.openai.tokenizing import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from worker.api.body import body_route
from worker.api.documentation import ERRORS
from worker.api.responses import json_response, unless_gone
from worker.gate import Slot
from worker.service import Service


def tokenizing_routes(service: Service) -> APIRouter:
    limits = service.limits
    router = APIRouter(route_class=body_route(limits.max_body_bytes, limits.body_seconds), tags=["Tokens"])

    async def tokenize(request: Request, body: TokenizeRequest) -> Any:
        """The tokens of a prompt or conversation as the model would see them; pictures are read by their headers."""
        answer = await unless_gone(request, _tokenize(service, body, request.state.slot))
        return json_response(answer.model_dump())

    async def detokenize(request: Request, body: DetokenizeRequest) -> Any:
        """The text of tokens."""
        answer = await unless_gone(request, _detokenize(service, body))
        return json_response(answer.model_dump())

    for prefix in ("", "/v1"):
        tokens = router.post(
            f"{prefix}/tokenize", response_model=TokenizeResponse, responses=ERRORS, include_in_schema=bool(prefix)
        )
        text = router.post(
            f"{prefix}/detokenize", response_model=DetokenizeResponse, responses=ERRORS, include_in_schema=bool(prefix)
        )
        tokens(tokenize)
        text(detokenize)
    return router


async def _tokenize(service: Service, request: TokenizeRequest, slot: Slot) -> TokenizeResponse:
    """Raises ApiError."""
    _check_model(service, request.model)
    if request.messages is None:
        image_tokens, text = 0, request.prompt or ""
        ids = await service.intake.text_tokens(text, special_first=request.add_special_tokens is not False)
    else:
        asked = {"model": request.model, "messages": request.messages, "tools": request.tools}
        chat = ChatCompletionRequest.model_validate(asked)
        slot.hold_images(service.intake.count_images(chat))
        ids, image_tokens = await service.intake.chat_tokens(chat, service.calling(chat))
    return TokenizeResponse(
        count=len(ids),
        max_model_len=service.card.context_length,
        tokens=list(ids),
        token_strs=await service.intake.token_texts(ids) if request.return_token_strs else None,
        image_tokens=image_tokens,
    )


async def _detokenize(service: Service, request: DetokenizeRequest) -> DetokenizeResponse:
    """Raises ApiError 400 for ids beyond the vocabulary."""
    _check_model(service, request.model)
    service.sampler.check_ids("tokens", request.tokens)
    return DetokenizeResponse(prompt=await service.intake.text_of(request.tokens))


def _check_model(service: Service, name: str) -> None:
    if name != service.card.name:
        raise model_not_found(name[:128])
