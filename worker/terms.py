"""On what terms a request runs: whose caches it may use, and until when. Read from headers, once it arrives.

The tenant is believed from a controller alone; anybody may say how much time there is.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, TypeVar

from server.protocol.call_headers import TENANT, TIMEOUT, deadline_exceeded, read_timeout
from server.protocol.openai import SamplingFields
from worker.generation import Generation

Stage = Literal["intake", "queue", "answer"]
Asked = TypeVar("Asked", bound=SamplingFields)

_TENANT, _TIMEOUT = TENANT.lower().encode(), TIMEOUT.lower().encode()
_SECRET = secrets.token_bytes(32)  # nobody who sends a cache_salt can make it equal to a tenant's


@dataclass(frozen=True)
class Terms:
    """`tenant` empty: everybody's caches. `deadline`: by the event loop's clock; None: none but the worker's own."""

    tenant: str = ""
    seconds: float = 0.0  # that there were on arrival
    deadline: float | None = None

    @classmethod
    def read(cls, headers: Mapping[bytes, bytes], *, from_controller: bool) -> Terms:
        """Raises ApiError 400."""
        tenant = headers.get(_TENANT, b"").decode("latin-1") if from_controller else ""
        given = headers.get(_TIMEOUT)
        if given is None:
            return cls(tenant)
        seconds = read_timeout(given.decode("latin-1"))
        return cls(tenant, seconds, asyncio.get_running_loop().time() + seconds)

    def salted(self, request: Asked) -> Asked:
        """The request with its tenant in its cache_salt."""
        if not self.tenant:
            return request
        own = f"{self.tenant}\0{request.cache_salt or ''}".encode()
        return request.model_copy(update={"cache_salt": blake2b(own, digest_size=32, key=_SECRET).hexdigest()})

    async def prepare(self, work: Awaitable[Generation], over: Callable[[Stage], None]) -> Generation:
        """Awaits `work` while there is time, and gives its generation what is left. Raises ApiError 504."""
        clock = asyncio.timeout_at(self.deadline)
        try:
            async with clock:
                generation = await work
        except TimeoutError:
            if not clock.expired():
                raise
            over("intake")
            raise deadline_exceeded(self.seconds) from None
        if self.deadline is not None:
            generation.end_by(self.deadline, self.seconds)
        return generation
