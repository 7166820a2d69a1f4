"""/internal/workers: how workers join, report and leave (`server.protocol.registration`). Always behind the secret."""

from __future__ import annotations

import re
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.body import read_body
from server.controller import Controller
from server.protocol.errors import ApiError, bad_request
from server.protocol.registration import Heartbeat, HeartbeatAnswer, Registration, RegistrationAnswer

_MAX_BODY = 256 * 1024
_BODY_SECONDS = 10.0
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_TEXT = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
_ANY_ADDRESS = ("0.0.0.0", "[::]")

_Message = TypeVar("_Message", bound=msgspec.Struct)


def worker_routes(controller: Controller) -> list[Route]:
    async def register(request: Request) -> Response:
        controller.worker_auth.check(request.scope["headers"])
        registration = await _read(request, Registration)
        check_registration(registration)
        await controller.membership.join(registration)
        settings = controller.settings
        answer = RegistrationAnswer(settings.heartbeat_seconds, settings.lease_seconds)
        return Response(msgspec.json.encode(answer), media_type="application/json")

    async def heartbeat(request: Request) -> Response:
        controller.worker_auth.check(request.scope["headers"])
        answer = await controller.membership.heartbeat(
            request.path_params["worker_id"], await _read(request, Heartbeat)
        )
        if answer == HeartbeatAnswer():
            return Response(status_code=204)
        return Response(msgspec.json.encode(answer), media_type="application/json")

    async def leave(request: Request) -> Response:
        controller.worker_auth.check(request.scope["headers"])
        await controller.membership.leave(request.path_params["worker_id"])
        return Response(status_code=204)

    return [
        Route("/internal/workers", register, methods=["POST"], include_in_schema=False),
        Route("/internal/workers/{worker_id}/heartbeat", heartbeat, methods=["POST"], include_in_schema=False),
        Route("/internal/workers/{worker_id}", leave, methods=["DELETE"], include_in_schema=False),
    ]


async def _read(request: Request, kind: type[_Message]) -> _Message:
    body = await read_body(
        request.scope["headers"], request.receive, limit=_MAX_BODY, seconds=_BODY_SECONDS, reserve=lambda size: None
    )
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise bad_request(f"Not a {kind.__name__}: {error}") from None


def check_registration(registration: Registration) -> None:
    """Raises ApiError 400 that names the field."""
    model, image = registration.model, registration.model.image
    _require(bool(_ID.fullmatch(registration.worker_id)), "worker_id", "letters, digits and ._:- only, at most 128")
    _check_url(registration.url)
    _require(bool(_TEXT.fullmatch(model.name)), "model.name", "1 to 256 printable characters")
    _require(bool(_TEXT.fullmatch(model.version)), "model.version", "1 to 256 printable characters")
    _require(0 < model.context_length < 2**31, "model.context_length", "a positive number of tokens")
    _require(0 <= model.max_images <= 4096, "model.max_images", "0 to 4096")
    _require(0 < registration.max_running <= 1_000_000, "max_running", "a positive number of requests")
    if image is not None:
        _require(0 < image.tile <= 16384, "model.image.tile", "1 to 16384 pixels")
        _require(0 < image.grid <= 1024, "model.image.grid", "1 to 1024 patches")
        _require(-1 <= image.extra_tokens <= 16, "model.image.extra_tokens", "-1 to 16")
        _require(image.max_tiles is None or 0 < image.max_tiles <= 32767, "model.image.max_tiles", "1 to 32767")
        _require(len(image.canvases) <= 256, "model.image.canvases", "at most 256")
        for width, height in image.canvases:
            whole = 0 < width <= 65536 and 0 < height <= 65536 and width % image.tile == 0 and height % image.tile == 0
            _require(whole, "model.image.canvases", f"multiples of the tile of {image.tile} pixels")


def _check_url(url: str) -> None:
    expected = "http://host:port or https://host:port, without a path or credentials"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _wrong("url", expected) from None
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc
    plain = f"{parts.scheme}://{parts.netloc}" == url and parts.scheme in ("http", "https") and port != 0
    _require(plain and bool(_HOST.fullmatch(host)), "url", expected)
    _require(host not in _ANY_ADDRESS, "url", "an address that the controller can reach, not 'every interface'")


def _require(holds: bool, field: str, expected: str) -> None:
    if not holds:
        raise _wrong(field, expected)


def _wrong(field: str, expected: str) -> ApiError:
    return bad_request(f"{field}: expected {expected}", param=field)
