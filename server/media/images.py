"""From a chat request's messages to the pictures in them: found, read by their headers, and put inline.

Only headers are read, so sizes and limits are known before any picture is decoded. Works on the parsed body in place: a
fetched picture replaces its URL, so that a worker never fetches anything. Content kinds off the allow-list are refused
here, because another server behind us might fetch from them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from model.errors import ImageError
from model.image_file import ImageHeader, read_header
from server.media.data_url import decode_data_url, encode_data_url, is_data_url
from server.media.fetch import ImageFetcher, Reserve
from server.metrics import Metrics
from server.protocol.errors import ApiError, bad_request
from server.settings import Settings

INLINE_BYTES = 256 * 1024  # work on more than this goes off the event loop
_PART_KINDS = ("text", "image_url", "refusal")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ImageReference:
    """Where a picture stands in the body."""

    part: dict[str, Any]  # the content part, of the parsed body
    url: str
    param: str  # as errors name it: messages[0].content[1].image_url

    def replace(self, url: str) -> None:
        if isinstance(self.part["image_url"], str):
            self.part["image_url"] = url
        else:
            self.part["image_url"]["url"] = url


@dataclass(frozen=True)
class RequestImages:
    """The pictures of a request in order, and whether the body was changed to hold them."""

    headers: tuple[ImageHeader, ...] = ()
    data_characters: int = 0  # of the body that is picture and not text
    rewritten: bool = False


def find_images(messages: object) -> list[ImageReference]:
    """Checks the shape of `messages` as far as pictures go. Raises ApiError 400."""
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages: expected a list of at least one message", param="messages")
    found: list[ImageReference] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_request(f"{where}: expected an object with a role and content", param=where)
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise bad_request(f"{where}.content: expected text or a list of parts", param=f"{where}.content")
        for number, part in enumerate(content):
            reference = _image_of(part, f"{where}.content[{number}]")
            if reference is not None:
                found.append(reference)
    return found


def _image_of(part: object, where: str) -> ImageReference | None:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in _PART_KINDS:
        raise bad_request(f"{where}.type: expected 'text' or 'image_url'; other kinds are not supported", param=where)
    if kind != "image_url":
        return None
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    param = f"{where}.image_url"
    if not isinstance(url, str):
        raise bad_request(f"{param}: expected an object with a url", param=param)
    return ImageReference(part, url, param)


class ImageResolver:
    """Holds the limits, the fetcher and the pool; one for the process."""

    def __init__(self, settings: Settings, fetcher: ImageFetcher, pool: Executor, metrics: Metrics) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._pool = pool
        self._metrics = metrics

    async def resolve(self, references: list[ImageReference], max_images: int, reserve: Reserve) -> RequestImages:
        """Reads every header, fetching what stands elsewhere. Raises ApiError that names the part."""
        try:
            return await self._resolve(references, max_images, reserve)
        except ApiError as error:
            self._metrics.image_rejections.labels(error.code or "invalid").inc()
            raise

    async def _resolve(self, references: list[ImageReference], max_images: int, reserve: Reserve) -> RequestImages:
        if len(references) > max_images:
            raise bad_request(
                f"The request holds {len(references)} images; this model takes at most {max_images}.",
                param=references[max_images].param,
                code="too_many_images",
            )
        remote = [reference for reference in references if not is_data_url(reference.url)]
        if remote:
            await self._put_inline(remote, reserve)
        characters = sum(len(_url(reference)) for reference in references)
        headers = await run_sized(self._pool, characters, partial(self._read_headers, references))
        return RequestImages(tuple(headers), characters, bool(remote))

    async def _put_inline(self, references: list[ImageReference], reserve: Reserve) -> None:
        """Fetches all at once (the fetcher bounds how many); the first that fails ends the others."""
        urls = list(dict.fromkeys(reference.url for reference in references))
        tasks: dict[str, asyncio.Task[bytes]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for url in urls:
                    tasks[url] = group.create_task(self._fetch(url, references, reserve))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        for reference in references:
            data = tasks[reference.url].result()
            reserve(len(data) // 3 * 4)
            with _naming(reference):
                reference.replace(await run_sized(self._pool, len(data), partial(self._inline, data)))

    async def _fetch(self, url: str, references: list[ImageReference], reserve: Reserve) -> bytes:
        with _naming(next(reference for reference in references if reference.url == url)):
            return await self._fetcher.fetch(url, reserve)

    def _inline(self, data: bytes) -> str:
        return encode_data_url(data, self._header(data).format)

    def _read_headers(self, references: list[ImageReference]) -> list[ImageHeader]:
        headers: list[ImageHeader] = []
        pixels = 0
        for reference in references:
            with _naming(reference):
                header = self._header(decode_data_url(_url(reference), self._settings.max_image_bytes))
                pixels += header.width * header.height
                if pixels > self._settings.max_request_pixels:
                    most = self._settings.max_request_pixels
                    raise bad_request(f"The images together hold more than {most} pixels.", code="too_many_pixels")
            headers.append(header)
        return headers

    def _header(self, data: bytes) -> ImageHeader:
        try:
            return read_header(data, max_pixels=self._settings.max_image_pixels)
        except ImageError as error:
            raise bad_request(str(error), code="invalid_image") from error


class _naming:
    """Errors that leave the block name the part that they are about."""

    def __init__(self, reference: ImageReference) -> None:
        self._param = reference.param

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ApiError) and error.param is None:
            error.param = self._param


def _url(reference: ImageReference) -> str:
    image = reference.part["image_url"]
    return str(image if isinstance(image, str) else image["url"])


async def run_sized(pool: Executor, size: int, work: Callable[[], _Result]) -> _Result:
    """Runs small work here and large work in the pool, so that the event loop never waits long."""
    if size <= INLINE_BYTES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(pool, work)
