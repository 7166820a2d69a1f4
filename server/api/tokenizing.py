"""POST /v1/tokenize and /v1/detokenize: through the same admission as chat, answered by a worker of the model.

Workers are asked at /tokenize and /detokenize, where vLLM has them too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.admission import Place
from server.api.chat import GenerationRoute
from server.controller import Controller
from server.limits.limiter import Grant
from server.protocol.registration import ModelCard
from server.relay import Call
from server.reply import Reply
from server.routing.base import Work
from server.stats import RequestRecord


class TokenRoute(GenerationRoute):
    """An ASGI application for one path. Nothing is generated: no tokens are taken from a key's limit."""

    def __init__(self, controller: Controller, path: str, worker_path: str) -> None:
        super().__init__(controller, path, chat=True)
        self._worker_path = worker_path

    def _has_messages(self, payload: dict[str, Any]) -> bool:
        return payload.get("messages") is not None

    def _estimate(self, payload: dict[str, Any], prompt_tokens: int) -> Work:
        return Work(0, 0)

    def _check_context(self, payload: dict[str, Any], image_tokens: int, card: ModelCard) -> None:
        """A prompt beyond the context has a length like any other."""

    async def _relay(self, call: Call, place: Place, grant: Grant, reply: Reply, record: RequestRecord) -> None:
        try:
            await super()._relay(replace(call, path=self._worker_path), place, grant, reply, record)
        finally:
            grant.used(0)
