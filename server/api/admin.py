"""/admin/*: what the dashboard shows, and what operators do. Behind the admin key; without one, callers on this machine
alone may read (`server.auth.AdminAuth`) and nobody may act.

    GET  /admin/workers                {"workers": [described worker], "lost": [described worker, with lost_seconds]}
    POST /admin/workers/{id}/drain     its description; the same again for one that drains already
    POST /admin/workers/{id}/undrain   its description; the same again for one that does not drain
    GET  /admin/stats                  {"time", "registry", "running", "waiting", "in_flight", "workers": {total,
                                       healthy}, "states": {state: workers}, ...`server.stats.Stats.summary`,
                                       "recent": [`server.stats.RequestRecord`, newest first]}

A worker's description: {id, url, model, version, engine, device, state (`server.registry.states`), healthy, breaker,
breaker_reason, weight, draining_since, safe_to_stop, in_flight, in_hand, queue_seconds, outstanding_tokens,
recent_attempts, recent_failures, first_token_seconds, max_running, running, waiting, kv_usage, kv_tokens,
context_length, started_at, heard_at}. What came of requests (breaker to weight, in_flight, recent_*) is this
controller's own experience.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, Depends, Request

from server.controller import Controller
from server.logs import log
from server.protocol.errors import ApiError
from server.registry.worker import Worker
from server.reply import REQUEST_ID


def admin_router(controller: Controller) -> APIRouter:
    async def check(request: Request) -> None:
        client = request.client
        controller.admin_auth.check(request.scope["headers"], (client.host, client.port) if client else None)

    async def check_action(request: Request) -> None:
        """Without a key a page in somebody's browser on this machine could act."""
        if not controller.settings.admin_key:
            raise ApiError(
                403,
                "Actions need an admin key: start the controller with TEPHRA_ADMIN_KEY and send it.",
                type="permission_error",
                code="admin_key_not_configured",
            )
        await check(request)

    async def act(request: Request, action: str, worker_id: str, doing: Awaitable[Worker]) -> dict[str, Any]:
        outcome = "failed"
        try:
            worker = await doing
            outcome = "done"
        finally:
            controller.metrics.admin_actions.labels(action, outcome).inc()
            log(
                logging.WARNING,
                "audit",
                action=action,
                outcome=outcome,
                worker=worker_id[:128],
                client=request.client.host if request.client else "",
                request_id=request.scope[REQUEST_ID],
            )
        return described(worker)

    router = APIRouter(prefix="/admin", tags=["Admin"])
    reading, acting = [Depends(check)], [Depends(check_action)]

    @router.get("/workers", summary="Registered workers, their load and state", dependencies=reading)
    async def workers() -> dict[str, Any]:
        lost = [described(worker) | {"lost_seconds": ago} for worker, ago in controller.table.lately_lost()]
        return {"workers": [described(worker) for worker in controller.table], "lost": lost}

    @router.post("/workers/{worker_id}/drain", summary="Send a worker no more requests", dependencies=acting)
    async def drain(worker_id: str, request: Request) -> dict[str, Any]:
        """Every controller honours it, from now until it is taken back or the worker leaves. What is in flight is
        finished; `state` is "drained" once the worker is safe to stop."""
        doing = controller.membership.drain(worker_id, request.scope[REQUEST_ID])
        return await act(request, "drain", worker_id, doing)

    @router.post("/workers/{worker_id}/undrain", summary="Send a worker requests again", dependencies=acting)
    async def undrain(worker_id: str, request: Request) -> dict[str, Any]:
        return await act(request, "undrain", worker_id, controller.membership.undrain(worker_id))

    @router.get("/stats", summary="Rates, percentiles and recent requests of this controller", dependencies=reading)
    async def stats() -> dict[str, Any]:
        members = list(controller.table)
        return {
            "time": time.time(),
            "registry": "connected" if controller.membership.connected else "lost",
            "workers": {"total": len(members), "healthy": controller.table.healthy},
            "states": Counter(worker.state for worker in members),
            "in_flight": controller.room.requests,
            "running": sum(worker.record.load.running for worker in members),
            "waiting": sum(worker.record.load.waiting for worker in members),
            **controller.stats.summary(),
            "recent": [record.public() for record in reversed(controller.stats.recent)],
        }

    return router


def described(worker: Worker) -> dict[str, Any]:
    registration, load, card, health = worker.record.registration, worker.record.load, worker.card, worker.health
    return {
        "id": worker.id,
        "url": worker.url,
        "model": card.name,
        "version": card.version,
        "context_length": card.context_length,
        "engine": registration.engine,
        "device": registration.device,
        "state": worker.state,
        "healthy": worker.healthy,
        "breaker": health.breaker,
        "breaker_reason": health.reason,
        "weight": round(worker.weight, 3),
        "draining_since": worker.drain.since if worker.drain is not None else None,
        "safe_to_stop": worker.drained,
        "in_flight": worker.in_flight,
        "in_hand": load.in_hand,
        "queue_seconds": round(worker.queue_seconds, 3),
        "outstanding_tokens": worker.outstanding_tokens,
        "recent_attempts": health.window.attempts,
        "recent_failures": health.window.failures,
        "first_token_seconds": health.window.median_first_token,
        "max_running": registration.max_running,
        "running": load.running,
        "waiting": load.waiting,
        "kv_usage": load.kv_usage,
        "kv_tokens": load.kv_tokens,
        "started_at": registration.started_at,
        "heard_at": time.time() - worker.silent_seconds,
    }
