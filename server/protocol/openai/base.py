"""What every model of the schema is made with: strictness, union branches, fields that are refused with words."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError


class StrictModel(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def shape_of(value: object) -> str:
    """The union branch for a value. Tags stand in angle brackets so that `validation` can leave them out of paths."""
    if isinstance(value, list):
        return "<list>"
    return "<object>" if isinstance(value, (dict, BaseModel)) else "<string>"


def kind_of(value: object, *known: str) -> str | None:
    """The union branch for an object with a `type`; None for a type that is not known."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in known else None


def neutral(*allowed: object) -> AfterValidator:
    """Accepts null and the values that ask for nothing; refuses the rest, naming the field."""

    def check(value: object, info: ValidationInfo) -> object:
        if value is None or any(type(value) is type(one) and value == one for one in allowed):
            return value
        raise PydanticCustomError("unsupported", "is not supported by this engine yet; leave it out")

    return AfterValidator(check)


NotSupported = Annotated[Any, neutral(), Field(description="Not supported yet: refused with 400 unless null.")]
NotTrue = Annotated[Any, neutral(False), Field(description="Not supported yet: refused with 400 unless false.")]
NotListed = Annotated[Any, neutral([], {}), Field(description="Not supported yet: refused with 400 unless empty.")]
