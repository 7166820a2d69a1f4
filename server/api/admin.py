"""/admin/*: what the dashboard shows, read only. Behind the admin key; without one, for callers on this machine alone
(`server.auth.AdminAuth`).

    GET /admin/workers  {"workers": [{id, url, model, version, engine, device, state, healthy, breaker, in_flight,
                         outstanding_tokens, max_running, running, waiting, kv_usage, kv_tokens, context_length,
                         started_at, heard_at}]}
    GET /admin/stats    {"time", "registry", "running", "waiting", "in_flight", "workers": {total, healthy},
                         ...`server.stats.Stats.summary`, "recent": [`server.stats.RequestRecord`, newest first]}
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Depends, Request

from server.controller import Controller
from server.registry.table import Worker


def admin_router(controller: Controller) -> APIRouter:
    async def check(request: Request) -> None:
        client = request.client
        controller.admin_auth.check(request.scope["headers"], (client.host, client.port) if client else None)

    router = APIRouter(prefix="/admin", tags=["Admin"], dependencies=[Depends(check)])

    @router.get("/workers", summary="Registered workers and their load")
    async def workers() -> dict[str, Any]:
        return {"workers": [_described(worker) for worker in controller.table]}

    @router.get("/stats", summary="Rates, percentiles and recent requests of this controller")
    async def stats() -> dict[str, Any]:
        members = list(controller.table)
        return {
            "time": time.time(),
            "registry": "connected" if controller.membership.connected else "lost",
            "workers": {"total": len(members), "healthy": controller.table.healthy},
            "in_flight": controller.room.requests,
            "running": sum(worker.record.load.running for worker in members),
            "waiting": sum(worker.record.load.waiting for worker in members),
            **controller.stats.summary(),
            "recent": [record.public() for record in reversed(controller.stats.recent)],
        }

    return router


def _described(worker: Worker) -> dict[str, Any]:
    registration, load, card = worker.record.registration, worker.record.load, worker.card
    if not worker.healthy:
        state = "unhealthy"
    else:
        state = "ready" if worker.health.admits else worker.health.breaker
    return {
        "id": worker.id,
        "url": worker.url,
        "model": card.name,
        "version": card.version,
        "context_length": card.context_length,
        "engine": registration.engine,
        "device": registration.device,
        "state": state,
        "healthy": worker.healthy,
        "breaker": worker.health.breaker,
        "in_flight": worker.in_flight,
        "outstanding_tokens": worker.outstanding_tokens,
        "max_running": registration.max_running,
        "running": load.running,
        "waiting": load.waiting,
        "kv_usage": load.kv_usage,
        "kv_tokens": load.kv_tokens,
        "started_at": registration.started_at,
        "heard_at": worker.record.heard_at,
    }
