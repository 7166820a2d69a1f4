"""/admin/*: what the dashboard shows, and what operators do. Behind the admin key; without one, callers on this machine
alone may read (`server.auth.AdminAuth`) and nobody may act.

    GET  /admin/workers                {"workers": [described worker], "lost": [described worker, with lost_seconds],
                                       "processes": {total, missing: [place]}}
    POST /admin/workers/{id}/drain     its description; the same again for one that drains already
    POST /admin/workers/{id}/undrain   its description; the same again for one that does not drain
    GET  /admin/stats                  {"time", "registry", "limits", "actions", "running", "waiting",
                                       "workers": {total, healthy}, "states": {state: workers}, "processes",
                                       ...`server.snapshot.joined`, over ?window= seconds}

A worker's description: {id, url, model, version, engine, device, healthy, draining_since, in_hand, max_running,
running, waiting, kv_usage, kv_tokens, context_length, started_at, heard_at, first_token_seconds, ...`WorkerPace`,
...`server.snapshot.seen_together`}. What came of requests (state to weight, in_flight, recent_*) is the experience of
this controller, of all its processes together; other controllers have theirs.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from server.controller import Controller
from server.logs import log
from server.protocol.errors import ApiError, bad_request
from server.registry.worker import Worker
from server.reply import REQUEST_ID
from server.snapshot import Snapshot, WorkerView, joined, seen_together
from server.stats import WINDOW, WINDOWS


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
        return described(worker, (await controller.survey(WINDOW))[0])

    router = APIRouter(prefix="/admin", tags=["Admin"])
    reading, acting = [Depends(check)], [Depends(check_action)]

    @router.get("/workers", summary="Registered workers, their load and state", dependencies=reading)
    async def workers() -> dict[str, Any]:
        snapshots, missing = await controller.survey(WINDOW)
        lost = [described(worker, snapshots) | {"lost_seconds": ago} for worker, ago in controller.table.lately_lost()]
        return {
            "workers": [described(worker, snapshots) for worker in controller.table],
            "lost": lost,
            "processes": _processes(snapshots, missing),
        }

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
    async def stats(
        window: Annotated[int, Query(description="Seconds that counts and percentiles are of: 60, 300 or 900.")] = 60,
    ) -> dict[str, Any]:
        """Of all processes of this controller, whichever answers; those that did not answer in time are named."""
        if window not in WINDOWS:
            raise bad_request(f"window: expected one of {', '.join(map(str, WINDOWS))}", param="window")
        snapshots, missing = await controller.survey(window)
        members = list(controller.table)
        return {
            "time": time.time(),
            "registry": "connected" if controller.membership.connected else "lost",
            "limits": controller.limiter.state,
            "actions": controller.settings.admin_key is not None,
            "processes": _processes(snapshots, missing),
            "workers": {"total": len(members), "healthy": controller.table.healthy},
            "states": Counter(seen_together(_views(worker, snapshots))["state"] for worker in members),
            "running": sum(worker.record.load.running for worker in members),
            "waiting": sum(worker.record.load.waiting for worker in members),
            **joined(snapshots, window),
        }

    return router


def _processes(snapshots: Sequence[Snapshot], missing: Sequence[int]) -> dict[str, Any]:
    return {"total": len(snapshots) + len(missing), "missing": list(missing)}


def _views(worker: Worker, snapshots: Sequence[Snapshot]) -> list[WorkerView]:
    """The first snapshot is this process's own, whose view may be older than what was just done."""
    others = [one.workers[worker.id] for one in snapshots[1:] if worker.id in one.workers]
    return [WorkerView.of(worker), *others]


def described(worker: Worker, snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    registration, load, card = worker.record.registration, worker.record.load, worker.card
    return {
        "id": worker.id,
        "url": worker.url,
        "model": card.name,
        "version": card.version,
        "context_length": card.context_length,
        "engine": registration.engine,
        "device": registration.device,
        "healthy": worker.healthy,
        "draining_since": worker.drain.since if worker.drain is not None else None,
        "in_hand": load.in_hand,
        "first_token_seconds": worker.health.window.median_first_token,
        "max_running": registration.max_running,
        "running": load.running,
        "waiting": load.waiting,
        "kv_usage": load.kv_usage,
        "kv_tokens": load.kv_tokens,
        "started_at": registration.started_at,
        "heard_at": time.time() - worker.silent_seconds,
        **asdict(worker.progress.pace),
        **seen_together(_views(worker, snapshots)),
    }
