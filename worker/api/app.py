"""The worker's ASGI application, put together once for one service."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.protocol.errors import ApiError
from worker.api.completions import completion_routes
from worker.api.front import Front
from worker.api.house import house_routes
from worker.api.responses import error_response
from worker.api.tokenizing import tokenizing_routes
from worker.service import Service


def create_app(service: Service) -> FastAPI:
    """The document is at /openapi.json; no pages, since those that FastAPI brings load scripts from elsewhere."""
    app = FastAPI(
        title="Tephra worker",
        summary="One LLaVA-family model behind an OpenAI-compatible API.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(completion_routes(service))
    app.include_router(tokenizing_routes(service))
    app.include_router(house_routes(service))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ApiError, _api_error)
    app.add_middleware(
        Front,
        gate=service.gate,
        api_keys=service.api_keys,
        worker_secret=service.worker_secret,
        send_seconds=service.limits.send_seconds,
    )
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    message = {
        404: "There is nothing at this path; /openapi.json lists what there is.",
        405: "This path does not take this method.",
    }.get(error.status_code, error.detail)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return error_response(ApiError(error.status_code, message, code=code, headers=dict(error.headers or {})))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)
