"""Breakers, slow start and outliers by a clock that the tests turn; what clients notice through the public port."""

from __future__ import annotations

import asyncio

from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from server.health.outliers import Outlier, Standing, find_outliers
from server.health.rules import HealthRules
from server.health.worker import FIRST_SHARE, WorkerHealth

RULES = HealthRules()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def health(clock: Clock, rules: HealthRules = RULES) -> tuple[WorkerHealth, list[str]]:
    changes: list[str] = []
    return WorkerHealth(rules, clock=clock, changed=lambda state, reason: changes.append(state)), changes


def probe(one: WorkerHealth, outcome: str) -> None:
    with one.attempt():
        one.record(outcome)


def test_failures_in_a_row_open_it_and_a_good_probe_closes_it_to_a_slow_start() -> None:
    clock = Clock()
    one, changes = health(clock)
    clock.now += RULES.slow_start_seconds
    assert one.weight == 1.0
    for _ in range(RULES.failures_in_a_row):
        assert one.admits
        one.record("failed")
    assert (one.breaker, one.reason) == ("open", "failed")
    clock.now += RULES.open_seconds - 0.01
    assert not one.wants_probe
    clock.now += 0.02
    assert one.wants_probe and not one.admits
    with one.attempt():
        assert not one.wants_probe  # one at a time
        one.record("ok", 0.1)
    assert one.admits
    assert one.weight == FIRST_SHARE
    clock.now += RULES.slow_start_seconds / 2
    assert one.weight == 0.5
    clock.now += RULES.slow_start_seconds / 2
    assert one.weight == 1.0
    assert changes == ["open", "half_open", "closed"]


def test_a_refused_connection_opens_it_at_once() -> None:
    one, _ = health(Clock())
    one.record("unreachable")
    assert one.breaker == "open"


def test_each_probe_that_fails_doubles_the_wait_up_to_a_limit() -> None:
    clock = Clock()
    one, _ = health(clock)
    one.record("unreachable")
    for seconds in (5, 10, 20, 40, 60, 60):
        clock.now += seconds - 0.01
        assert one.breaker == "open"
        clock.now += 0.02
        assert one.breaker == "half_open"
        probe(one, "failed")


def test_a_probe_that_tells_nothing_is_followed_by_another() -> None:
    clock = Clock()
    one, _ = health(clock)
    one.record("unreachable")
    clock.now += RULES.open_seconds
    probe(one, "abandoned")
    assert one.wants_probe
    with one.attempt():
        pass
    assert one.wants_probe


def test_a_rate_of_failures_opens_it_though_no_three_come_in_a_row() -> None:
    one, _ = health(Clock())
    for _ in range(RULES.least_attempts // 2):
        assert one.admits
        one.record("ok")
        one.record("failed")
    assert one.breaker == "open"


def test_failures_that_lie_longer_ago_than_the_window_do_not_count() -> None:
    clock = Clock()
    one, _ = health(clock)
    for _ in range(50):
        one.record("failed")
        one.record("ok")
        one.record("ok")
        clock.now += RULES.window_seconds / 4
    assert one.admits


def test_refusals_and_clients_that_leave_open_nothing() -> None:
    one, _ = health(Clock())
    for _ in range(100):
        one.record("refused")
        one.record("abandoned")
    assert one.admits


events = st.one_of(
    st.sampled_from(["ok", "refused", "failed", "unreachable", "abandoned", "probe ok", "probe failed"]),
    st.floats(0, 100),
)


@given(st.lists(events, max_size=80))
def test_whatever_happens_a_worker_takes_requests_again_within_the_longest_wait(happened: list[str | float]) -> None:
    clock = Clock()
    one, _ = health(clock)
    for event in happened:
        if isinstance(event, float):
            clock.now += event
        elif event.startswith("probe "):
            probe(one, event.removeprefix("probe "))
        else:
            one.record(event)
        assert one.admits == (one.breaker == "closed")
        assert not (one.wants_probe and one.admits)
        assert 0 < one.weight <= 1
        assert 0 <= one.window.failures <= one.window.attempts <= 1000
    clock.now += RULES.most_open_seconds
    assert one.admits or one.wants_probe


standings = st.builds(
    Standing,
    st.uuids().map(str),
    st.booleans(),
    st.just(40),
    st.integers(0, 40),
    st.one_of(st.none(), st.floats(0.001, 100)),
)


@given(st.lists(standings, max_size=12), st.floats(0, 1))
def test_never_more_than_a_share_of_the_workers_is_out_of_use_by_ejection(
    members: list[Standing], share: float
) -> None:
    ejected = find_outliers(members, HealthRules(ejected_share=share))
    if ejected:
        assert len(ejected) + sum(not one.in_use for one in members) <= share * len(members)
    assert {one.id for one in ejected} <= {one.id for one in members if one.in_use}


@given(st.integers(0, 40), st.integers(3, 9))
def test_what_goes_wrong_everywhere_is_nobodys_fault(failures: int, count: int) -> None:
    members = [Standing(f"w{number}", True, 40, failures, 1.0) for number in range(count)]
    assert find_outliers(members, RULES) == []


def test_the_slow_and_the_failing_are_found() -> None:
    usual = [Standing(f"w{number}", True, 40, 1, 0.2) for number in range(5)]
    assert find_outliers([*usual, Standing("slow", True, 40, 1, 1.5)], RULES) == [Outlier("slow", "slow")]
    both = [*usual, Standing("slow", True, 40, 1, 30.0), Standing("wrong", True, 40, 15, 0.2)]
    assert find_outliers(both, RULES) == [Outlier("wrong", "failures"), Outlier("slow", "slow")]
    assert find_outliers([*usual, Standing("new", True, 4, 4, 30.0)], RULES) == []


async def test_a_worker_is_not_blamed_for_the_time_that_a_client_gives(client, start_worker):
    worker = await start_worker("w1", client)

    async def too_late(request):
        error = {"message": "The time was over.", "type": "timeout", "code": "deadline_exceeded"}
        return web.json_response({"error": error}, status=504)

    worker.handler = too_late
    for _ in range(2 * RULES.least_attempts):
        assert (await client.chat("hi"))[0] == 504
    assert len(worker.bodies) == 2 * RULES.least_attempts
    health = client.controller.table.get("w1").health
    assert (health.breaker, health.window.attempts) == ("closed", 0)


async def test_a_failing_worker_is_probed_by_one_request_at_a_time_and_used_again_when_it_answers(
    start_controller, start_worker, until
):
    client = await start_controller(breaker_failures=2, breaker_open_seconds=0.2)
    bad = await start_worker("w1", client)
    await start_worker("w2", client)
    healthy = bad.handler

    async def fail(request):
        return web.json_response({"error": {"message": "broken", "type": "server_error"}}, status=502)

    bad.handler = fail
    table = client.controller.table
    while table.get("w1").health.breaker == "closed":
        assert (await client.chat("hi"))[0] == 200
    assert len(bad.bodies) == 2
    assert (await client.get("/admin/workers"))[1]["workers"][0]["state"] == "open"
    assert (await client.chat("hi"))[0] == 200
    assert len(bad.bodies) == 2

    waiting = asyncio.Event()

    async def recover(request):
        await waiting.wait()
        return await healthy(request)

    bad.handler = recover
    await until(lambda: table.get("w1").health.wants_probe)
    probing = asyncio.create_task(client.chat("hi"))
    await until(lambda: len(bad.bodies) == 3)
    assert (await client.get("/admin/workers"))[1]["workers"][0]["state"] == "half_open"
    for _ in range(3):
        assert (await client.chat("hi"))[0] == 200
    assert len(bad.bodies) == 3
    waiting.set()
    assert (await probing)[0] == 200
    assert table.get("w1").health.admits
    assert await client.metric("breaker_changes_total", state="open", reason="failed") == 1
    assert await client.metric("breaker_changes_total", state="closed", reason="failed") == 1
    assert await client.metric("routing_decisions_total", reason="probe") == 1
    text = (await client.get("/metrics"))[1]
    assert 'tephra:worker_state{state="healthy",worker="w2"} 1.0' in text


async def test_when_every_breaker_is_open_requests_are_tried_all_the_same(start_controller, start_worker):
    client = await start_controller(breaker_failures=1, breaker_open_seconds=60.0)
    worker = await start_worker("w1", client)
    healthy = worker.handler

    async def crash(request):
        request.transport.abort()
        return web.Response()

    worker.handler = crash
    assert (await client.chat("hi"))[0] == 503
    assert client.controller.table.get("w1").health.breaker == "open"
    worker.handler = healthy
    assert (await client.chat("hi"))[0] == 200
    assert await client.metric("routing_decisions_total", reason="last_resort") >= 1


async def test_a_worker_that_starts_anew_gets_a_growing_share(start_controller, start_worker):
    first = await start_controller(slow_start_seconds=60.0)
    old = await start_worker("w1", first)
    client = await start_controller(slow_start_seconds=60.0, routing="round-robin")  # which finds w1 at work
    new = await start_worker("w2", client)
    for _ in range(20):
        assert (await client.chat("hi"))[0] == 200
    assert len(old.bodies) >= 16 and len(new.bodies) >= 1
    states = {worker["id"]: worker["state"] for worker in (await client.get("/admin/workers"))[1]["workers"]}
    assert states["w2"] in ("joining", "slow_start")


async def test_workers_that_a_new_controller_finds_start_at_once(start_controller, start_worker):
    first = await start_controller(slow_start_seconds=60.0)
    await start_worker("w1", first)
    second = await start_controller(slow_start_seconds=60.0)
    assert first.controller.table.get("w1").weight < 1.0
    assert second.controller.table.get("w1").weight == 1.0
