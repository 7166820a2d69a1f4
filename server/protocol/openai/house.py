"""What is served, and errors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from server.protocol.openai.base import StrictModel


class ModelCapabilities(StrictModel):
    vision: bool
    max_images: int


class ModelEntry(StrictModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    version: str
    max_model_len: int = Field(description="Context length: tokens of prompt and answer together.")
    capabilities: ModelCapabilities


class ModelList(StrictModel):
    object: Literal["list"]
    data: list[ModelEntry]


class ErrorDetail(StrictModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(StrictModel):
    error: ErrorDetail
