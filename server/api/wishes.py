"""Where a request asks to be computed: on one version of a model, in one session's worker.

    X-Model-Version: VERSION   or "model": "NAME@VERSION": only workers that serve that version may answer
    X-Session-Id: ID           requests of the same id go to the same worker while it can take them

Answers name the version that they were computed on in X-Tephra-Version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.protocol.errors import ApiError, bad_request, model_not_found, unavailable
from server.protocol.registration import ModelCard
from server.registry.table import WorkerTable
from server.registry.worker import Worker

VERSION = "X-Model-Version"
SESSION = "X-Session-Id"
_MAX_VERSION = 256  # characters, as registrations may have
_MAX_SESSION = 256
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Wishes:
    version: str = ""  # empty: any
    session: str = ""  # a digest; empty: none


def read_wishes(headers: Sequence[tuple[bytes, bytes]], tenant: str) -> Wishes:
    """Of a request's headers. Sessions of different tenants are different ones. Raises ApiError 400."""
    version = session = ""
    for name, value in headers:
        if name == b"x-model-version":
            version = _plain(value, VERSION, _MAX_VERSION)
        elif name == b"x-session-id":
            session = _plain(value, SESSION, _MAX_SESSION)
    return Wishes(version, _digest(f"{tenant}\0{session}") if session else "")


@dataclass(frozen=True)
class Served:
    """A model as a request names it."""

    model: str
    version: str | None  # None: any
    workers: list[Worker]  # at least one, fit or not

    @property
    def card(self) -> ModelCard:
        """Of the roomiest worker: where cards differ, nothing is refused that one of them can take."""
        return max((worker.card for worker in self.workers), key=lambda card: card.context_length)


def find_served(table: WorkerTable, named: object, wishes: Wishes, allow: Callable[[str], None]) -> Served:
    """The workers that may answer. `allow` raises for a model that may not be used, before it is told whether it is
    there. Raises ApiError: 400 for a name that is none, 404 for what is not served, 503 for what was served lately."""
    if not isinstance(named, str) or not 0 < len(named) <= 256 + 1 + _MAX_VERSION:
        raise bad_request("model: expected the name of a model; GET /v1/models lists them.", param="model")
    model, version = _split(table, named)
    allow(model)
    if version and wishes.version and version != wishes.version:
        raise bad_request(
            f"model asks for version {version!r} and {VERSION} for {wishes.version!r}; send one.", param="model"
        )
    version = version or wishes.version
    workers = table.serving(model, version or None)
    if not workers:
        raise _not_served(table, model, version)
    return Served(model, version or None, workers)


def _split(table: WorkerTable, named: str) -> tuple[str, str]:
    """A name that is served as it stands is a name, whatever is in it."""
    if "@" not in named or table.serving(named) or table.remembers(named):
        return named, ""
    model, _, version = named.partition("@")
    return model, version


def _not_served(table: WorkerTable, model: str, version: str) -> ApiError:
    if version and table.remembers(model, version):
        return unavailable(
            f"No worker for version {version!r} of the model {model!r} is connected right now; try again shortly."
        )
    if version and table.serving(model):
        return ApiError(
            404,
            f"Version {version!r} of the model {model!r} is not served here; GET /v1/models lists those that are.",
            param="model",
            code="version_not_found",
        )
    if table.remembers(model) or not len(table):
        return unavailable("No worker for this model is connected right now; try again shortly.")
    return model_not_found(model)


def _plain(value: bytes, header: str, most: int) -> str:
    text = value.decode("latin-1").strip()
    if not 0 < len(text) <= most or not text.isprintable():
        raise bad_request(f"{header}: expected 1 to {most} printable characters", param=header)
    return text


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
