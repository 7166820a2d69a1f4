"""Joining a controller and staying joined, against a small stand-in for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

import worker.membership
from server.protocol.registration import Heartbeat, HeartbeatAnswer, ModelCard, Registration, WorkerLoad
from worker.membership import Membership

CARD = ModelCard("tiny", "v1", 2048, 0)


class Controller:
    """Keeps what it is told; answers as `statuses` say, then as a healthy controller would."""

    def __init__(self) -> None:
        self.members: dict[str, Registration] = {}
        self.joined = 0
        self.beats: list[Heartbeat] = []
        self.left: list[str] = []
        self.statuses: list[int] = []
        self.secrets: set[str | None] = set()
        self.wish: dict[str, bool] | None = None
        self.hangs = self.fails = False

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/internal/workers", self.join)
        app.router.add_post("/internal/workers/{id}/heartbeat", self.beat)
        app.router.add_delete("/internal/workers/{id}", self.leave)
        return app

    async def join(self, request: web.Request) -> web.Response:
        self.secrets.add(request.headers.get("Authorization"))
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        registration = msgspec.json.decode(await request.read(), type=Registration)
        self.members[registration.worker_id] = registration
        self.joined += 1
        return web.json_response({"heartbeat_seconds": 0.05, "lease_seconds": 1.0})

    async def beat(self, request: web.Request) -> web.Response:
        while self.hangs:
            await asyncio.sleep(0.01)
        if self.fails:
            return web.Response(status=503)
        if request.match_info["id"] not in self.members:
            return web.Response(status=404)
        self.beats.append(msgspec.json.decode(await request.read(), type=Heartbeat))
        return web.Response(status=204) if self.wish is None else web.json_response(self.wish)

    async def leave(self, request: web.Request) -> web.Response:
        self.left.append(request.match_info["id"])
        self.members.pop(request.match_info["id"], None)
        return web.Response(status=204)


@asynccontextmanager
async def listening(stand_in: Controller, port: int = 0) -> AsyncIterator[int]:
    """On which port."""
    runner = web.AppRunner(stand_in.app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.fixture
async def controller() -> AsyncIterator[tuple[Controller, str]]:
    stand_in = Controller()
    async with listening(stand_in) as port:
        yield stand_in, f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.membership, "FIRST_WAIT", 0.01)


def member(
    urls: str | list[str],
    heartbeat: Callable[[], Heartbeat] | None = None,
    obey: Callable[[HeartbeatAnswer], bool] = lambda answer: False,
) -> Membership:
    registration = Registration("w-1", "http://127.0.0.1:9", CARD, "native", "cpu", 8, 0.0)
    told = heartbeat or (lambda: Heartbeat(WorkerLoad(running=2)))
    return Membership([urls] if isinstance(urls, str) else urls, "s3cret", lambda: registration, told, obey)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_worker_joins_with_the_secret_reports_its_load_and_leaves(controller: tuple[Controller, str]) -> None:
    stand_in, url = controller
    membership = member(url + "/")
    await membership.start()
    await until(lambda: len(stand_in.beats) >= 3)
    assert stand_in.members["w-1"].model == CARD
    assert stand_in.secrets == {"Bearer s3cret"}
    assert stand_in.beats[0].load.running == 2 and stand_in.beats[0].healthy
    await membership.leave()
    assert (stand_in.left, membership.state) == (["w-1"], "left")


async def test_a_forgotten_worker_registers_again(controller: tuple[Controller, str]) -> None:
    stand_in, url = controller
    membership = member(url)
    await membership.start()
    await until(lambda: stand_in.beats)
    stand_in.members.clear()
    await until(lambda: stand_in.joined == 2)
    stand_in.beats.clear()
    await until(lambda: stand_in.beats)
    await membership.leave()


async def test_a_controller_that_refuses_or_fails_is_asked_again(controller: tuple[Controller, str]) -> None:
    stand_in, url = controller
    stand_in.statuses = [401, 500, 503]
    membership = member(url)
    await membership.start()
    await until(lambda: membership.state == "joined")
    assert stand_in.statuses == []
    await membership.leave()


async def test_a_controller_that_is_not_there_is_waited_for_and_may_come_back() -> None:
    stand_in = Controller()
    async with listening(stand_in) as port:
        membership = member(f"http://127.0.0.1:{port}")
        await membership.start()
        await until(lambda: stand_in.beats)
    await until(lambda: membership.state == "joining")
    async with listening(stand_in, port):
        await until(lambda: stand_in.joined == 2)
    await membership.leave()
    assert membership.state == "left"


@pytest.mark.parametrize("how", ["gone", "hangs", "fails"])
async def test_when_its_controller_is_lost_the_next_one_is_told_and_the_worker_stays_a_member(how: str) -> None:
    controllers, runners, urls = [Controller(), Controller()], [], []
    controllers[1].members = controllers[0].members  # in the Redis that they share
    for stand_in in controllers:
        runner = web.AppRunner(stand_in.app(), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
    membership = member(urls)
    await membership.start()
    await until(lambda: len(controllers[0].beats) >= 2)
    assert controllers[1].beats == []
    if how == "gone":
        await runners[0].cleanup()
    controllers[0].hangs = how == "hangs"
    controllers[0].fails = how == "fails"
    await until(lambda: len(controllers[1].beats) >= 2)
    assert (membership.state, controllers[0].joined, controllers[1].joined) == ("joined", 1, 0)
    await membership.leave()
    assert controllers[1].left == ["w-1"]
    controllers[0].hangs = False
    for runner in runners:
        await runner.cleanup()


async def test_what_must_be_known_now_does_not_wait_for_the_next_beat(controller: tuple[Controller, str]) -> None:
    stand_in, url = controller
    healthy = True
    membership = member(url, lambda: Heartbeat(WorkerLoad(), healthy))
    await membership.start()
    await until(lambda: stand_in.beats)
    healthy = False
    membership.tell_now()
    await until(lambda: not stand_in.beats[-1].healthy)
    await membership.leave()


async def test_the_controllers_wish_is_obeyed_and_told_of_at_once(controller: tuple[Controller, str]) -> None:
    stand_in, url = controller
    held = False

    def obey(answer: HeartbeatAnswer) -> bool:
        nonlocal held
        changed, held = answer.drain != held, answer.drain
        return changed

    membership = member(url, lambda: Heartbeat(WorkerLoad(), draining=held), obey)
    await membership.start()
    stand_in.wish = {"drain": True}
    await until(lambda: stand_in.beats and stand_in.beats[-1].draining)
    stand_in.wish = None
    await until(lambda: not stand_in.beats[-1].draining)
    assert membership.state == "joined"
    await membership.leave()
