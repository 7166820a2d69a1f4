"""POST /v1/images/tokens: what pictures will cost in tokens, from their sizes alone.

Counted here by `model.geometry`, as every worker of the model counts; no worker is asked. Pictures may be described by
their sizes, or sent, in which case their headers are read as in a chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import orjson
from pydantic import Discriminator, Field, Tag

from model.geometry import ImageLayout
from model.image_file import MAX_SIDE
from server.admission import Place, image_geometry
from server.api.chat import GenerationRoute
from server.controller import Controller
from server.deadline import Deadline
from server.limits.limiter import Grant
from server.media.images import ImageReference, run_sized
from server.protocol.errors import bad_request
from server.protocol.openai.base import StrictModel
from server.protocol.openai.tokenizing import ModelName
from server.protocol.registration import ModelCard
from server.protocol.validation import parse_request
from server.reply import Reply
from server.stats import RequestRecord

PATH = "/v1/images/tokens"
MAX_IMAGES = 1024


class ImageSize(StrictModel):
    width: int = Field(ge=1, le=MAX_SIDE, description="Pixels, as the picture is seen (EXIF orientation applied).")
    height: int = Field(ge=1, le=MAX_SIDE)


class ImageSource(StrictModel):
    url: str = Field(description="data:image/png;base64,... or http(s)://...")


def _kind(value: object) -> str:
    given = value.keys() if isinstance(value, dict) else ()
    return "<picture>" if "url" in given else "<size>"


Image = Annotated[Annotated[ImageSize, Tag("<size>")] | Annotated[ImageSource, Tag("<picture>")], Discriminator(_kind)]


class ImageTokensRequest(StrictModel):
    """The pictures of one conversation: with some models it matters how many there are."""

    model: ModelName
    images: list[Image] = Field(min_length=1, max_length=MAX_IMAGES)


class Pixels(StrictModel):
    width: int
    height: int


class Cells(StrictModel):
    rows: int
    columns: int


class ImageTokens(StrictModel):
    width: int
    height: int
    tokens: int
    tiles: int = Field(description="Views that the vision tower encodes, the whole picture's included.")
    canvas: Pixels | None = Field(description="What the picture is laid on and cut into tiles; null: one view only.")
    kept: Cells | None = Field(description="The canvas's feature cells that remain once padding is removed.")


class ImageTokensResponse(StrictModel):
    object: Literal["image_tokens"]
    model: str
    version: str = Field(description="Whose geometry was taken.")
    images: list[ImageTokens]
    total_tokens: int
    context_length: int
    context_left: int = Field(description="For text and answer; below 0 where the pictures alone are too many.")
    max_images: int = Field(description="In one request.")
    fits: bool = Field(description="Whether a request with these pictures and a short text is accepted.")


class ImageTokensRoute(GenerationRoute):
    def __init__(self, controller: Controller) -> None:
        super().__init__(controller, PATH, chat=True)

    async def _handle(
        self, body: bytes, place: Place, grant: Grant, deadline: Deadline, reply: Reply, record: RequestRecord
    ) -> None:
        controller = self._controller
        request = await run_sized(controller.pool, len(body), partial(parse_request, ImageTokensRequest, body))
        card = self._card_of(request.model, grant.key, record)
        record.model, record.images = card.name, len(request.images)
        sent = [
            ImageReference({"image_url": image.url}, image.url, f"images[{place}].url")
            for place, image in enumerate(request.images)
            if isinstance(image, ImageSource)
        ]
        await grant.take(requests=1, images=len(sent))
        images = await controller.images.resolve(sent, MAX_IMAGES, place.reserve, grant.key.tenant)
        headers = iter(images.headers)
        sizes = []
        for given in request.images:
            image = next(headers) if isinstance(given, ImageSource) else given
            sizes.append((image.width, image.height))
        answer = _counted(card, sizes)
        record.ended = "complete"
        await reply.json(200, orjson.dumps(answer.model_dump()))


def _counted(card: ModelCard, sizes: Sequence[tuple[int, int]]) -> ImageTokensResponse:
    """Raises ApiError 400 for a model without eyes."""
    if card.image is None:
        raise bad_request(f"The model {card.name!r} does not take images.", param="images", code="images_not_supported")
    geometry = image_geometry(card.image)
    images = [_described(geometry.layout(width, height, len(sizes))) for width, height in sizes]
    total = sum(image.tokens for image in images)
    return ImageTokensResponse(
        object="image_tokens",
        model=card.name,
        version=card.version,
        images=images,
        total_tokens=total,
        context_length=card.context_length,
        context_left=card.context_length - total,
        max_images=card.max_images,
        fits=total < card.context_length and len(images) <= card.max_images,
    )


def _described(layout: ImageLayout) -> ImageTokens:
    canvas, unpad = layout.canvas, layout.unpad
    kept = layout.shrunk or ((unpad.rows, unpad.columns) if unpad is not None else None)
    return ImageTokens(
        width=layout.width,
        height=layout.height,
        tokens=layout.tokens,
        tiles=layout.tiles,
        canvas=None if canvas is None else Pixels(width=canvas.width, height=canvas.height),
        kept=None if kept is None else Cells(rows=kept[0], columns=kept[1]),
    )
