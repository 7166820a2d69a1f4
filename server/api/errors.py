"""Every error of the FastAPI side in OpenAI's shape: unknown paths, wrong methods, bad parameters, our own faults."""

from __future__ import annotations

from http import HTTPStatus

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.logs import log_exception
from server.protocol.errors import ApiError, bad_request, internal_error
from server.reply import REQUEST_ID


def error_response(error: ApiError) -> Response:
    return Response(orjson.dumps(error.body()), error.status, error.headers, "application/json")


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _fault)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(ApiError(404, "There is nothing at this path.", code="not_found"))
    if error.status_code == 405:
        message = f"{request.method} is not allowed at this path."
        return error_response(ApiError(405, message, code="method_not_allowed", headers=dict(error.headers or {})))
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    return error_response(ApiError(error.status_code, HTTPStatus(error.status_code).phrase, type=kind))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(step) for step in first["loc"][1:])
    return error_response(bad_request(f"{where}: {first['msg']}", param=where or None))


async def _fault(request: Request, error: Exception) -> Response:
    request_id = str(request.scope.get(REQUEST_ID, ""))
    log_exception("request failed", request_id=request_id, path=request.url.path)
    return error_response(internal_error(request_id))
