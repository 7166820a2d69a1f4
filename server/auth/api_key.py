"""A client's key as the controller knows it: never the key itself, but whose it is and what it may do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fnmatch import fnmatchcase

from server.protocol.errors import ApiError


@dataclass(frozen=True)
class KeyLimits:
    """None: no limit of this kind."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts (pictures included) and answers
    images_per_minute: int | None = None
    concurrent: int | None = None  # requests under way at once

    @property
    def any(self) -> bool:
        return not (
            self.requests_per_minute is None
            and self.tokens_per_minute is None
            and self.images_per_minute is None
            and self.concurrent is None
        )


@dataclass(frozen=True)
class ApiKey:
    """`tenant` names whose requests may share caches; empty: everybody's."""

    name: str
    tenant: str
    models: tuple[str, ...] = ("*",)  # patterns as of a shell: * ? [abc]
    limits: KeyLimits = KeyLimits()
    expires_at: float | None = None  # unix seconds
    disabled: bool = False

    def check(self) -> None:
        """Raises ApiError 401 once the key is revoked or too old."""
        if self.disabled:
            raise _refused("This API key was revoked.", "api_key_revoked")
        if self.expires_at is not None and time.time() >= self.expires_at:
            raise _refused("This API key has expired.", "api_key_expired")

    def may_use(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    def require_model(self, model: str) -> None:
        """Raises ApiError 403, the same whether or not such a model exists."""
        if not self.may_use(model):
            raise ApiError(
                403,
                f"This API key may not use the model {model[:256]!r}; GET /v1/models lists those that it may.",
                type="permission_error",
                param="model",
                code="model_not_allowed",
            )


ANYONE = ApiKey(name="", tenant="")  # who asks where no keys are configured


def _refused(message: str, code: str) -> ApiError:
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(401, message, type="authentication_error", code=code, headers=headers)
