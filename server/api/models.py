"""/v1/models: what the connected workers serve, merged by name."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from server.admission import image_geometry
from server.controller import Controller
from server.protocol.errors import model_not_found
from server.protocol.registration import ImageCard
from server.registry.table import Worker


class Canvas(BaseModel):
    width: int
    height: int


class ImageCapabilities(BaseModel):
    """How pictures become tokens; POST /v1/images/tokens does the arithmetic."""

    tile: int = Field(description="Pixels a side of what the vision tower sees at once.")
    grid: int = Field(description="Patches a side of a tile.")
    canvases: list[Canvas] = Field(description="What pictures are laid on and cut into tiles; none: one view each.")
    max_tiles: int | None = Field(description="Tiles' worth of features that a picture is shrunk to; null: no bound.")
    several_images: Literal["tiles", "base"] = Field(
        description="tiles: each of several pictures is tiled; base: each is one view."
    )
    max_tokens: int = Field(description="The most that one picture can cost.")


class Capabilities(BaseModel):
    vision: bool
    max_images: int = Field(description="Pictures in one request.")
    image: ImageCapabilities | None = Field(description="Of the newest version.")
    structured_output: bool = Field(description="response_format, guided_* and structured_outputs.")
    tools: bool = Field(description="Calls that the request names or requires.")
    tool_choice_auto: bool = Field(description="Calls that the model decides on.")
    logprobs: bool
    streaming: bool = True


class Model(BaseModel):
    """OpenAI's fields, and what a client needs to size a request."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds.")
    owned_by: str = "tephra"
    version: str = Field(description="The newest version served; answers name theirs in system_fingerprint.")
    versions: list[str]
    context_length: int = Field(description="Tokens, prompt and answer together.")
    max_model_len: int = Field(description="The same under vLLM's name.")
    capabilities: Capabilities
    workers: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def models_router(controller: Controller) -> APIRouter:
    router = APIRouter(tags=["Models"])

    @router.get("/v1/models", summary="List models")
    async def list_models(request: Request) -> ModelList:
        key = controller.client_auth.check(request.scope["headers"])
        models = sorted(controller.table.models.items())
        return ModelList(data=[_merged(name, workers) for name, workers in models if key.may_use(name)])

    @router.get("/v1/models/{model:path}", summary="Describe one model")
    async def get_model(model: str, request: Request) -> Model:
        controller.client_auth.check(request.scope["headers"]).require_model(model)
        workers = controller.table.serving(model)
        if not workers:
            raise model_not_found(model)
        return _merged(model, workers)

    return router


def _merged(name: str, workers: list[Worker]) -> Model:
    """Where workers differ, what all of them can take is promised."""
    cards = sorted((worker.card for worker in workers), key=lambda card: card.created, reverse=True)
    newest = cards[0]
    context_length = min(card.context_length for card in cards)
    vision = all(card.image is not None for card in cards)
    return Model(
        id=name,
        created=newest.created,
        version=newest.version,
        versions=list(dict.fromkeys(card.version for card in cards)),
        context_length=context_length,
        max_model_len=context_length,
        capabilities=Capabilities(
            vision=vision,
            max_images=min(card.max_images for card in cards) if vision else 0,
            image=_image(newest.image) if vision and newest.image is not None else None,
            structured_output=all(card.structured_output for card in cards),
            tools=all(card.tools != "none" for card in cards),
            tool_choice_auto=all(card.tools == "auto" for card in cards),
            logprobs=all(card.logprobs for card in cards),
        ),
        workers=len(workers),
    )


def _image(card: ImageCard) -> ImageCapabilities:
    return ImageCapabilities(
        tile=card.tile,
        grid=card.grid,
        canvases=[Canvas(width=width, height=height) for width, height in card.canvases],
        max_tiles=card.max_tiles,
        several_images=card.several_images,
        max_tokens=image_geometry(card).max_tokens,
    )
