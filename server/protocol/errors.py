"""Errors in the shape that OpenAI's clients expect, whoever answers: controller or worker."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ApiError(Exception):
    """An error for the client. `message` says what was wrong, which limit, what to do; it never holds secrets."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unauthorized() -> ApiError:
    return ApiError(
        401,
        "Missing or wrong API key: send it as 'Authorization: Bearer KEY'.",
        type="authentication_error",
        code="invalid_api_key",
    )


def model_not_found(name: str) -> ApiError:
    return ApiError(
        404, f"The model {name!r} does not exist here; GET /v1/models lists what does.", code="model_not_found"
    )


def too_large(message: str) -> ApiError:
    return ApiError(413, message, code="request_too_large")


def overloaded(message: str, retry_after: float) -> ApiError:
    seconds = str(max(1, round(retry_after)))
    return ApiError(429, message, type="rate_limit_error", code="overloaded", headers={"Retry-After": seconds})


def unavailable(message: str) -> ApiError:
    return ApiError(503, message, type="server_error", code="unavailable", headers={"Retry-After": "1"})


def internal_error(request_id: str) -> ApiError:
    return ApiError(
        500,
        f"Internal error; the log has it under request id {request_id}.",
        type="server_error",
        code="internal_error",
    )
