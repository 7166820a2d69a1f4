"""/health/* and /metrics. Open without a key: probes and scrapers carry none, and nothing here tells of any request's
content, of keys or of addresses."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from server.controller import Controller
from server.protocol.errors import unavailable


class Live(BaseModel):
    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    status: Literal["ready", "degraded"]
    registry: Literal["connected", "lost"]
    limits: Literal["shared", "local", "refusing"]
    workers: int
    healthy_workers: int


def health_router(controller: Controller) -> APIRouter:
    router = APIRouter(tags=["Health"])

    @router.get("/health/live", summary="The process runs")
    async def live() -> Live:
        return Live()

    @router.get("/health/ready", summary="At least one worker can answer")
    async def ready() -> Ready:
        """503 while no worker can answer; "degraded" while Redis is lost and the last known table serves."""
        healthy = controller.table.healthy
        if controller.stopping:
            raise unavailable("The server is stopping.")
        if not healthy:
            raise unavailable(f"No healthy worker: {len(controller.table)} registered.")
        connected, limits = controller.membership.connected, controller.limiter.state
        return Ready(
            status="ready" if connected and limits == "shared" else "degraded",
            registry="connected" if connected else "lost",
            limits=limits,
            workers=len(controller.table),
            healthy_workers=healthy,
        )

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        members = [worker.id for worker in controller.table]
        return Response(controller.metrics.exposition(members), media_type=CONTENT_TYPE_LATEST)

    return router
