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
from server.media.data_url import decode_data_url, decoded_size, encode_data_url, is_data_url
from server.media.fetch import Reserve
from server.media.policy import read_policy
from server.media.shared_fetches import SharedFetches
from server.metrics import Metrics
from server.protocol.errors import ApiError, bad_request, too_large
from server.settings import Settings

INLINE_BYTES = 256 * 1024  # work on more than this goes off the event loop
INLINE_PICTURE_BYTES = 2 * 1024 * 1024  # likewise, of data URLs to be decoded: a quarter of a millisecond
_TELLING = 64  # characters at the end of a URL by which most are told apart
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


def _first_of_each(references: list[ImageReference]) -> list[int]:
    """For each, the place of the first with the same URL. Megabytes are compared, never hashed."""
    alike: dict[tuple[int, str], list[int]] = {}
    first: list[int] = []
    for place, reference in enumerate(references):
        known = alike.setdefault((len(reference.url), reference.url[-_TELLING:]), [])
        same = next((other for other in known if references[other].url == reference.url), None)
        if same is None:
            known.append(place)
        first.append(place if same is None else same)
    return first


class ImageResolver:
    """Holds the limits, the fetches and the pool; one for the process."""

    def __init__(self, settings: Settings, fetches: SharedFetches, pool: Executor, metrics: Metrics) -> None:
        self._settings = settings
        self._policy = read_policy(settings)
        self._fetches = fetches
        self._pool = pool
        self._metrics = metrics

    async def resolve(
        self, references: list[ImageReference], max_images: int, reserve: Reserve, tenant: str
    ) -> RequestImages:
        """Reads every header, fetching what stands elsewhere. Raises ApiError that names the part.

        `tenant` names who may share fetched pictures; empty: everybody who has no name.
        """
        try:
            return await self._resolve(references, max_images, reserve, tenant)
        except ApiError as error:
            self._metrics.image_rejections.labels(error.code or "invalid").inc()
            raise

    async def _resolve(
        self, references: list[ImageReference], max_images: int, reserve: Reserve, tenant: str
    ) -> RequestImages:
        if len(references) > max_images:
            raise bad_request(
                f"The request holds {len(references)} images; this model takes at most {max_images}.",
                param=references[max_images].param,
                code="too_many_images",
            )
        first = _first_of_each(references)
        pictures = [reference for place, reference in enumerate(references) if first[place] == place]
        budget = _ByteBudget(self._settings.max_request_image_bytes, reserve)
        remote: list[ImageReference] = []
        for reference in pictures:
            if not is_data_url(reference.url):
                remote.append(reference)
                continue
            with _naming(reference):
                self._policy.check_scheme("data")
                budget.take(decoded_size(reference.url))  # their memory is the body's
        fetched = await self._fetch_all(remote, budget, tenant) if remote else {}
        for reference in references if fetched else ():
            reserve(len(fetched.get(reference.url, b"")) // 3 * 4)
        size = sum(len(picture.url) for picture in pictures) + sum(map(len, fetched.values()))
        work = partial(self._read_all, references, first, fetched)
        read = await run_sized(self._pool, size, work, inline=INLINE_PICTURE_BYTES)
        for reference, picture in zip(references, read, strict=True):
            reference.replace(picture.url)
        headers = tuple(picture.header for picture in read)
        return RequestImages(headers, bool(remote))

    async def _fetch_all(self, references: list[ImageReference], budget: _ByteBudget, tenant: str) -> dict[str, bytes]:
        """Fetches all at once (the fetcher bounds how many); the first that fails ends the others."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._fetch(reference, budget, tenant)) for reference in references]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {reference.url: task.result() for reference, task in zip(references, tasks, strict=True)}

    async def _fetch(self, reference: ImageReference, budget: _ByteBudget, tenant: str) -> bytes:
        with _naming(reference):
            return await self._fetches.fetch(tenant, reference.url, budget.reserve)

    def _read_all(self, references: list[ImageReference], first: list[int], fetched: dict[str, bytes]) -> list[_Read]:
        """Holds the budget of pixels picture by picture, in order."""
        read: list[_Read] = []
        pixels = 0
        for place, reference in enumerate(references):
            with _naming(reference):
                known = first[place] < place
                read.append(read[first[place]] if known else self._read(reference.url, fetched))
                pixels += read[place].header.width * read[place].header.height
                if pixels > self._settings.max_request_pixels:
                    most = self._settings.max_request_pixels
                    raise bad_request(f"The images together hold more than {most} pixels.", code="too_many_pixels")
        return read

    def _read(self, url: str, fetched: dict[str, bytes]) -> _Read:
        inline = is_data_url(url)
        data = decode_data_url(url, self._settings.max_image_bytes) if inline else fetched[url]
        try:
            header = read_header(data, max_pixels=self._settings.max_image_pixels)
        except ImageError as error:
            raise bad_request(str(error), code="invalid_image") from error
        return _Read(header, url if inline else encode_data_url(data, header.format))


@dataclass(frozen=True)
class _Read:
    """A picture whose header was read, and the data URL that holds it."""

    header: ImageHeader
    url: str


class _ByteBudget:
    """What all pictures of one request may have together, held while they arrive."""

    def __init__(self, limit: int, reserve: Reserve) -> None:
        self._limit = limit
        self._reserve = reserve
        self._taken = 0

    def take(self, size: int) -> None:
        """Raises ApiError 413."""
        self._taken += size
        if self._taken > self._limit:
            raise too_large(f"The pictures of the request are together larger than {self._limit} bytes.")

    def reserve(self, size: int) -> None:
        """Also takes the memory for them. Raises ApiError 413, or 429 when the controller is full."""
        self.take(size)
        self._reserve(size)


class _naming:
    """Errors that leave the block name the part that they are about."""

    def __init__(self, reference: ImageReference) -> None:
        self._param = reference.param

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ApiError) and error.param is None:
            error.param = self._param


async def run_sized(pool: Executor, size: int, work: Callable[[], _Result], *, inline: int = INLINE_BYTES) -> _Result:
    """Runs small work here and large work in the pool, so that the event loop never waits long."""
    if size <= inline:
        return work()
    return await asyncio.get_running_loop().run_in_executor(pool, work)
