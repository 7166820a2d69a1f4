"""The controller as an ASGI application."""

from __future__ import annotations

from functools import partial
from importlib import metadata

from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp

from server.api.admin import admin_router
from server.api.chat import GenerationRoute
from server.api.errors import install_error_handlers
from server.api.front import Front
from server.api.health import health_router
from server.api.image_tokens import PATH as IMAGE_TOKENS
from server.api.image_tokens import ImageTokensRoute
from server.api.models import models_router
from server.api.openapi import document
from server.api.pages import page_routes
from server.api.tokenizing import TokenRoute
from server.api.workers import worker_routes
from server.controller import Controller


def create_app(controller: Controller) -> ASGIApp:
    """Starting and stopping `controller` is the caller's (`server.listen`)."""
    app = FastAPI(
        title="Tephra",
        version=_version(),
        description="An OpenAI-compatible chat API with images, in front of many workers.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # the address would be made of the client's own Host header
    )
    hot: dict[str, ASGIApp] = {
        "/v1/chat/completions": GenerationRoute(controller, "/v1/chat/completions", chat=True),
        "/v1/completions": GenerationRoute(controller, "/v1/completions", chat=False),
        **{path: TokenRoute(controller, path, "/tokenize") for path in ("/v1/tokenize", "/tokenize")},
        **{path: TokenRoute(controller, path, "/detokenize") for path in ("/v1/detokenize", "/detokenize")},
        IMAGE_TOKENS: ImageTokensRoute(controller),
    }
    install_error_handlers(app)
    app.include_router(models_router(controller))
    app.include_router(health_router(controller))
    app.include_router(admin_router(controller))
    app.router.routes.extend(worker_routes(controller))
    # Front takes POST to these; the routes here answer every other method with 405.
    app.router.routes.extend(
        Route(path, route, methods=["POST"], include_in_schema=False) for path, route in hot.items()
    )
    app.router.routes.extend(page_routes())
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    return Front(app, hot)


def _version() -> str:
    try:
        return metadata.version("tephra")
    except metadata.PackageNotFoundError:
        return "0"
