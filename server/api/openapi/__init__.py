"""The OpenAPI document: every route on the controller's port, with what it asks, answers and refuses.

Written out here rather than collected from the routes, since the hot ones go around FastAPI; tests hold that no route
is missing and that answers are of the shapes that stand here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api.openapi import client, operators
from server.api.openapi.headers import HEADERS, PARAMETERS
from server.api.openapi.operation import Operation, Schemas
from server.protocol.openai import ErrorResponse

Json = dict[str, Any]

OPERATIONS: tuple[Operation, ...] = (*client.OPERATIONS, *operators.OPERATIONS)

_TEMPLATE = "#/components/schemas/{}"
_ABOUT = """An OpenAI-compatible chat API with images, in front of many workers.

Clients of OpenAI's API work unchanged. Every refusal has OpenAI's shape, `{"error": {message, type, param, code}}`, and
every answer names its request in `X-Request-Id`. Paths that are not listed here are answered 404 `not_found`, other
methods 405 `method_not_allowed` with an `Allow` header.
"""
_TAGS = {
    "Generation": "Answers and continuations.",
    "Tokens": "What requests will cost.",
    "Models": "What is served, and what it can do.",
    "Health": "For probes and Prometheus; open.",
    "Admin": "For operators.",
    "Workers": "For workers, which share a secret with the controller.",
    "Pages": "For browsers; open.",
}
_SECURITY: Json = {
    "ApiKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "A client's key. Not asked for where the controller was given none.",
    },
    "AdminKey": {"type": "http", "scheme": "bearer", "description": "The controller's TEPHRA_ADMIN_KEY."},
    "WorkerSecret": {"type": "http", "scheme": "bearer", "description": "The controller's TEPHRA_WORKER_SECRET."},
}


def document(app: FastAPI) -> Json:
    """Of `app` only its name and version are taken. Made once: everybody may ask for it."""
    if app.openapi_schema is None:
        app.openapi_schema = _document(app)
    return app.openapi_schema


def _document(app: FastAPI) -> Json:
    schemas, components = _schemas({one for operation in OPERATIONS for one in operation.types} | {ErrorResponse})
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = operation.render(schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": app.title, "version": app.version, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": words} for name, words in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "securitySchemes": _SECURITY,
        },
    }


def _schemas(types: Iterable[type]) -> tuple[Schemas, dict[str, Json]]:
    """(where the schema of each type stands, the schemas by name)."""
    found: dict[type, Json] = {dict: {"type": "object"}}
    models = sorted((one for one in types if issubclass(one, BaseModel)), key=lambda one: one.__name__)
    structs = sorted((one for one in types if issubclass(one, msgspec.Struct)), key=lambda one: one.__name__)
    named, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=_TEMPLATE.format("{model}")
    )
    components: dict[str, Json] = definitions.get("$defs", {})
    for model in models:
        found[model] = named[(model, "validation")]
    references, of_structs = msgspec.json.schema_components(structs, ref_template=_TEMPLATE.format("{name}"))
    components.update(of_structs)
    return found | dict(zip(structs, references, strict=True)), components
