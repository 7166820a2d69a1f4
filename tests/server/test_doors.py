"""The doors beside the API: health, metrics, the operator's read-only view, the pages."""

from __future__ import annotations

import pytest

from server.api.pages import PAGES
from server.auth import AdminAuth
from server.protocol.errors import ApiError


async def test_live_and_metrics_are_open_even_with_keys(start_controller):
    client = await start_controller(api_keys=("key",), admin_key="admin")
    assert await client.get("/health/live") == (200, {"status": "ok"})
    assert (await client.get("/health/ready"))[0] == 503
    status, text = await client.get("/metrics")
    assert status == 200
    assert "tephra_controller_num_requests_running 0.0" in text
    assert "tephra_controller_registry_connected 1.0" in text


async def test_metrics_forget_workers_that_are_gone(client, start_worker):
    worker = await start_worker("w-gone", client)
    await client.chat("hi")
    assert 'worker="w-gone"' in (await client.get("/metrics"))[1]
    await worker.leave()
    assert 'worker="w-gone"' not in (await client.get("/metrics"))[1]


async def test_the_operator_sees_workers_and_recent_requests_but_no_prompts(client, start_worker):
    worker = await start_worker("w1", client)
    worker.load = {"running": 2, "waiting": 1, "kv_usage": 0.25}
    worker.silence()
    assert await worker.post("/w1/heartbeat", {"load": worker.load}) == 204
    await client.chat("a most private question")
    await client.stream("another private question")
    await client.chat("hi", model="unknown")
    status, body = await client.get("/admin/workers")
    assert status == 200
    (seen,) = body["workers"]
    assert (seen["id"], seen["state"], seen["running"], seen["waiting"]) == ("w1", "healthy", 2, 1)
    assert (seen["kv_usage"], seen["in_flight"], seen["version"]) == (0.25, 0, "v1")
    status, stats = await client.get("/admin/stats")
    assert status == 200
    assert (stats["running"], stats["waiting"], stats["workers"]) == (2, 1, {"total": 1, "healthy": 1})
    assert (stats["requests_total"], stats["tokens_total"]) == (3, 5)
    assert stats["ttft_seconds"]["count"] == 1
    assert stats["latency_seconds"]["count"] == 2
    assert [request["status"] for request in stats["recent"]] == [404, 200, 200]
    assert stats["recent"][0]["error"] == "model_not_found"
    assert stats["recent"][1]["worker"] == "w1"
    assert "private" not in str(stats)


async def test_the_operators_door_asks_for_its_own_key(start_controller):
    client = await start_controller(admin_key="admin", api_keys=("key",))
    for path in ("/admin/workers", "/admin/stats"):
        for headers in ({}, {"Authorization": "Bearer key"}, {"Authorization": "Bearer "}):
            status, body = await client.get(path, headers)
            assert (status, body["error"]["code"]) == (401, "invalid_admin_key")
        assert (await client.get(path, {"Authorization": "Bearer admin"}))[0] == 200


async def test_without_an_admin_key_only_this_machine_may_look(client):
    assert (await client.get("/admin/workers"))[0] == 200
    for headers in ({"X-Forwarded-For": "1.2.3.4"}, {"Forwarded": "for=1.2.3.4"}, {"Host": "evil.example:8000"}):
        status, body = await client.get("/admin/workers", headers)
        assert (status, body["error"]["code"]) == (403, "admin_key_not_configured")


@pytest.mark.parametrize("peer", [("10.0.0.5", 1), ("::ffff:10.0.0.5", 1), ("testclient", 1), None])
def test_a_peer_from_elsewhere_may_not_look(peer):
    with pytest.raises(ApiError) as caught:
        AdminAuth(None).check([(b"host", b"localhost:8000")], peer)
    assert caught.value.status == 403


@pytest.mark.parametrize("peer", [("127.0.0.1", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)])
@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:80", b"[::1]:8000"])
def test_a_peer_on_this_machine_may_look(peer, host):
    AdminAuth(None).check([(b"host", host)], peer)


async def test_pages_and_assets_come_under_a_policy_that_runs_nothing_else(client):
    script = next(file.name for file in sorted((PAGES / "assets").glob("*.js")))
    for path in ("/", "/dashboard", f"/assets/{script}"):
        async with client.session.get(client.url + path) as response:
            assert response.status == 200
            policy = dict(rule.split(" ", 1) for rule in response.headers["Content-Security-Policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == "'self'"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
    async with client.session.head(client.url + "/") as response:
        assert response.status == 200


async def test_assets_lead_nowhere_else(client):
    for path in ("/assets/../playground.html", "/assets/%2e%2e/%2e%2e/settings.py", "/assets//etc/passwd", "/assets/"):
        async with client.session.get(client.url + path) as response:
            assert response.status == 404, path
            assert (await response.json())["error"]["code"] == "not_found"
