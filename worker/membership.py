"""Joins the worker to a controller and keeps it joined: register, heartbeat, register again when forgotten, leave.

A controller that cannot be reached is asked again for ever, with growing waits and jitter, while the worker goes on
answering whoever reaches it. Of several that share their state, the next one is told instead, before the lease is over.
`server.protocol.registration` is the contract.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Literal

import aiohttp
import msgspec

from server.protocol.registration import Heartbeat, HeartbeatAnswer, Registration, RegistrationAnswer

log = logging.getLogger("tephra.membership")

FIRST_WAIT = 0.25  # seconds before the second attempt; doubled from there on
LONGEST_WAIT = 10.0
CALL_SECONDS = 5.0  # for any one call to the controller
LEAVE_SECONDS = 2.0
_MAX_ANSWER = 64 * 1024  # bytes

State = Literal["joining", "joined", "left"]


class Membership:
    """One worker at one controller, or at one of several that share a Redis."""

    def __init__(
        self,
        controller_urls: Sequence[str],
        secret: str | None,
        registration: Callable[[], Registration],
        heartbeat: Callable[[], Heartbeat],
        obey: Callable[[HeartbeatAnswer], bool] = lambda answer: False,
    ) -> None:
        """`obey` does what the controller asks for, and tells whether that changed anything."""
        self._workers_urls = [url.rstrip("/") + "/internal/workers" for url in controller_urls]
        self._at = 0  # which of them is told
        self._call_seconds = CALL_SECONDS
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._registration = registration
        self._heartbeat = heartbeat
        self._obey = obey
        self._session: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._worker_id = registration().worker_id
        self.state: State = "joining"

    async def start(self) -> None:
        """Begins to join; does not wait for it."""
        self._session = aiohttp.ClientSession(headers=self._headers, trust_env=False)
        self._task = asyncio.create_task(self._stay_joined(), name="membership")

    def tell_now(self) -> None:
        """Sends the next heartbeat at once: something changed that the controller must know (draining, health)."""
        self._hurry.set()

    async def leave(self) -> None:
        """Ends the heartbeats and signs off; a controller that does not answer finds out when the lease ends."""
        if self._session is None:
            return
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            if self.state == "joined":
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._call("DELETE", f"/{self._worker_id}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("The controller could not be told that this worker leaves: %s", _reason(error))
        finally:
            self.state = "left"
            await self._session.close()

    async def _stay_joined(self) -> None:
        wait, failed = FIRST_WAIT, 0
        every = None
        while True:
            try:
                if every is None:
                    every = await self._register()
                    self.state = "joined"
                else:
                    if not failed:
                        await self._pause(every * random.uniform(0.9, 1.0))
                    if not await self._beat():
                        self.state, every = "joining", None
                wait, failed = FIRST_WAIT, 0
            except (aiohttp.ClientError, TimeoutError, OSError, _Refused, msgspec.DecodeError) as error:
                failed += 1
                self._at = (self._at + 1) % len(self._workers_urls)
                if failed < len(self._workers_urls):
                    log.warning("The controller does not take this worker: %s; the next one is told", _reason(error))
                    continue
                log.warning(
                    "The controller does not take this worker: %s; next try in about %.1f s", _reason(error), wait
                )
                self.state, failed = "joining", 0
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(wait * 2, LONGEST_WAIT)
                every = None  # it may be another process by now, one that never heard of us

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            pass  # nobody was in a hurry
        self._hurry.clear()

    async def _register(self) -> float:
        """Seconds between heartbeats."""
        status, body = await self._call("POST", "", self._registration())
        if status not in (200, 201):
            raise _Refused(status)
        answer = msgspec.json.decode(body, type=RegistrationAnswer)
        log.info("Joined the controller as %s", self._worker_id)
        if len(self._workers_urls) > 1:  # one that hangs must leave time to tell another
            self._call_seconds = min(CALL_SECONDS, max(answer.lease_seconds / 3, 0.05))
        return min(max(answer.heartbeat_seconds, 0.05), max(answer.lease_seconds / 2, 0.05))

    async def _beat(self) -> bool:
        """False when the controller has forgotten this worker."""
        status, body = await self._call("POST", f"/{self._worker_id}/heartbeat", self._heartbeat())
        if status == 404:
            return False
        if status not in (200, 204):
            raise _Refused(status)
        if self._obey(msgspec.json.decode(body, type=HeartbeatAnswer) if body else HeartbeatAnswer()):
            self.tell_now()
        return True

    async def _call(self, method: str, path: str, content: msgspec.Struct | None = None) -> tuple[int, bytes]:
        assert self._session is not None
        body = None if content is None else msgspec.json.encode(content)
        headers = {"Content-Type": "application/json"}
        async with self._session.request(
            method,
            self._workers_urls[self._at] + path,
            data=body,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=self._call_seconds),
        ) as response:
            return response.status, await response.content.read(_MAX_ANSWER)


class _Refused(Exception):
    """The controller answered, but not with yes."""

    def __init__(self, status: int) -> None:
        hint = ": the worker secret is not the controller's" if status in (401, 403) else ""
        super().__init__(f"it answered {status}{hint}")


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
