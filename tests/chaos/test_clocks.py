"""Clocks that jump by hours under load, one process's after the other: nobody is forgotten, nothing is cut or repeated.

The monotonic clock goes on, as it does where an operator or NTP sets the time. Controllers and workers are given a
`time.time` of the test's making, which is the only clock of the day that they ask. Valkey's is forged by libfaketime,
which PyPI's package of that name carries for x86-64. (Python does not run under it: its pthread_cond_timedwait reckons
with a forged monotonic clock whatever it is told, and with that waits Python's interpreter lock.)
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from server.state import EmbeddedValkey

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("libfaketime") is None, reason="libfaketime, of the dev extra, is for x86-64 Linux"),
]

LEASE = 3.0  # seconds
HOUR = 3600.0


class Clock:
    """One process's time of day."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0.0)

    def set(self, ahead: float) -> None:
        """Seconds before the true time; seen within a second or so."""
        aside = self._file.with_suffix(".new")
        aside.write_text(f"{ahead:+.0f}\n")
        aside.replace(self._file)

    def in_python(self) -> dict[str, str]:
        """The environment of a Python process that goes by it."""
        folder = self._file.with_suffix(".python")
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(_FORGED.format(file=str(self._file)))
        return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}

    def in_c(self) -> dict[str, str]:
        """That of any other."""
        files = importlib.metadata.files("libfaketime") or []
        return {
            "LD_PRELOAD": next(str(file.locate()) for file in files if file.name == "libfaketime.so.1"),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


_FORGED = """
import time
_true = time.time
def _forged():
    with open({file!r}) as file:
        return _true() + float(file.read())
time.time = _forged
time.time_ns = lambda: int(_forged() * 1e9)
"""


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Clock]:
    folder = tmp_path_factory.mktemp("clocks")
    return {name: Clock(folder / name) for name in ("controller", "east", "west", "redis")}


@pytest.fixture(scope="module")
def valkey(clocks: dict[str, Clock]) -> Iterator[EmbeddedValkey]:
    valkey = EmbeddedValkey()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clocks["redis"].in_c().items():
            patch.setenv(name, value)
        valkey.start()
    yield valkey
    valkey.stop()


@pytest.fixture(scope="module")
def shared_system(running_system: Any, valkey: EmbeddedValkey, keys: Any, clocks: dict[str, Clock]) -> Iterator[Any]:
    controller = {"redis_url": valkey.url, "keys_file": keys.file, "lease_seconds": LEASE, "heartbeat_seconds": 0.5}
    controller["environment"] = clocks["controller"].in_python()
    workers = {"max_running": 4, "environment": lambda name: clocks[name].in_python()}
    with running_system(controller, workers) as system:
        yield system


async def told(system: Any, valkey: EmbeddedValkey, whose: str) -> float:
    """The time of day that it goes by."""
    if whose == "controller":
        return float(system.get("/admin/stats")["time"])
    if whose == "redis":
        with redis.Redis.from_url(valkey.url) as store:
            return float(store.time()[0])
    body = {"model": system.model, "prompt": "hi", "max_tokens": 1}
    headers = {"Authorization": f"Bearer {system.secret}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{system.workers[whose].url}/v1/completions", json=body) as response,
    ):
        answer = await response.json()
        assert response.status == 200, answer
        return float(answer["created"])


@pytest.mark.parametrize("whose", ["controller", "east", "redis"])
async def test_a_clock_that_jumps_by_hours_is_noticed_by_nobody(
    system: Any, traffic: Any, keys: Any, valkey: EmbeddedValkey, clocks: dict[str, Clock], whose: str
) -> None:
    names = ["retries_total", "breaker_changes_total"]
    if whose != "redis":  # there records end with a jump: a worker that is late with its heartbeat registers again
        names.append("registrations_total")
    disturbed = [system.metric(name) for name in names]
    used_up = await keys.make(system.url, requests_per_minute=1)
    async with traffic:
        assert [await keys.use(used_up, system) for _ in range(2)] == [200, 429]
        for ahead in (5 * HOUR, -3 * HOUR, 0.0):
            before = traffic.asked
            clocks[whose].set(ahead)
            async with asyncio.timeout(120):
                while abs(await told(system, valkey, whose) - time.time() - ahead) > HOUR / 2:
                    await asyncio.sleep(0.1)
            until = time.monotonic() + 1.5 * LEASE
            while time.monotonic() < until or traffic.asked < before + 10:
                members = system.members()
                assert {name: one["state"] in ("healthy", "slow_start") for name, one in members.items()} == {
                    "east": True,
                    "west": True,
                }
                await asyncio.sleep(0.2)
            if whose == "redis" and ahead >= 0:
                assert await keys.use(used_up, system) == 200  # hours have passed, as far as Redis knows
            assert await keys.use(used_up, system) == 429
    print(f"\nclock of {whose}: {traffic.asked} requests, longest {traffic.longest:.2f} s")
    assert not traffic.faults
    assert disturbed == [system.metric(name) for name in names]
