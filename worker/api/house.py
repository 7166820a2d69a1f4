"""What is served here and how it is doing: models, health, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from server.protocol.errors import model_not_found
from server.protocol.openai import ModelCapabilities, ModelEntry, ModelList
from worker.api.documentation import ERRORS
from worker.api.responses import json_response
from worker.service import Service


def house_routes(service: Service) -> APIRouter:
    router = APIRouter()
    card = service.card
    entry = ModelEntry(
        id=card.name,
        object="model",
        created=card.created,
        owned_by="tephra",
        version=card.version,
        max_model_len=card.context_length,
        capabilities=ModelCapabilities(vision=card.image is not None, max_images=card.max_images),
    )

    @router.get("/v1/models", tags=["OpenAI"], response_model=ModelList, responses={401: ERRORS[401]})
    async def models() -> Any:
        """The one model that this worker serves, with its version and what it can do."""
        return ModelList(object="list", data=[entry])

    @router.get("/v1/models/{name:path}", tags=["OpenAI"], response_model=ModelEntry, responses={404: ERRORS[404]})
    async def model(name: str) -> Any:
        if name != card.name:
            raise model_not_found(name[:128])
        return entry

    @router.get("/health/live", tags=["Health"], responses={503: {"description": "The engine died."}})
    async def live() -> Any:
        """503 once the engine has died, which only a new process cures."""
        alive = service.engine.healthy
        return json_response({"status": "live" if alive else "failed"}, 200 if alive else 503)

    @router.get("/health/ready", tags=["Health"], responses={503: {"description": "Draining, or the engine died."}})
    async def ready() -> Any:
        """200 while new requests are welcome."""
        status = "failed" if not service.engine.healthy else "draining" if service.gate.draining else "ready"
        return json_response(
            {"status": status, "version": card.version, "requests": service.gate.requests},
            200 if status == "ready" else 503,
        )

    @router.get("/metrics", tags=["Health"], response_class=Response)
    async def metrics() -> Any:
        """Prometheus text."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router
