"""The playground, the dashboard and their assets: plain files, under a policy that runs nothing but them."""

from __future__ import annotations

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

PAGES = Path(__file__).resolve().parent.parent / "pages"

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # asked again each time, answered 304: a new release shows at once
}
_RAW_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Assets(StaticFiles):
    """Static files under the same policy."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_RAW_HEADERS]
            await send(message)

        await super().__call__(scope, receive, guarded)


def page_routes(pages: Path = PAGES) -> list[BaseRoute]:
    def page(path: str, name: str) -> Route:
        file = pages / name

        async def show(request: Request) -> Response:
            if not file.is_file():
                raise HTTPException(404)
            return FileResponse(file, media_type="text/html; charset=utf-8", headers=HEADERS)

        return Route(path, show, methods=["GET"], include_in_schema=False)

    return [
        page("/", "playground.html"),
        page("/dashboard", "dashboard.html"),
        Mount("/assets", Assets(directory=pages / "assets", check_dir=False)),
    ]
