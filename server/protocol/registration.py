"""How a worker joins a controller and stays joined.

    POST   /internal/workers                  Registration -> RegistrationAnswer; again after a 404 on a heartbeat
    POST   /internal/workers/{id}/heartbeat   Heartbeat -> 200 HeartbeatAnswer where there is something to do, else 204;
                                              404: the lease ran out, register again
    DELETE /internal/workers/{id}             leaving in good order -> 204

All three carry `Authorization: Bearer <TEPHRA_WORKER_SECRET>`, and so does every request that the controller sends to a
worker. Bodies are JSON (msgspec).
"""

from __future__ import annotations

from typing import Literal

import msgspec


class ImageCard(msgspec.Struct, frozen=True):
    """What the controller needs to count a picture's tokens (`model.geometry.ImageGeometry`)."""

    tile: int
    grid: int
    canvases: list[tuple[int, int]]  # (width, height)
    extra_tokens: int = 0
    unpad: Literal["truncate", "round7", "covered"] = "round7"
    max_tiles: int | None = None
    several_images: Literal["tiles", "base"] = "tiles"
    newline: bool = False


class ModelCard(msgspec.Struct, frozen=True):
    """What a worker serves."""

    name: str
    version: str  # what answers report as system_fingerprint
    context_length: int
    created: int  # unix seconds
    image: ImageCard | None = None
    max_images: int = 16  # per request
    structured_output: bool = False  # answers of a given form: response_format and its like
    tools: Literal["none", "forced", "auto"] = "none"  # forced: only where the request names or requires a call
    logprobs: bool = False


class WorkerTotals(msgspec.Struct, frozen=True):
    """Counted since the worker's start, as in its metrics of these names."""

    prompt_tokens: int = 0  # computed
    answer_tokens: int = 0  # drawn
    prefix_queries: int = 0  # prompt tokens looked for in the prefix cache
    prefix_hits: int = 0
    image_queries: int = 0  # pictures looked for in the vision-feature cache
    image_hits: int = 0


class WorkerLoad(msgspec.Struct, frozen=True):
    """As `worker.engine.protocol.EngineLoad`."""

    running: int = 0
    waiting: int = 0
    outstanding_tokens: int = 0
    kv_usage: float = 0.0
    kv_tokens: int = 0
    outstanding_prompt_tokens: int = 0  # of outstanding_tokens, those of prompts
    prompt_token_seconds: float = 0.0  # measured cost of a prompt token amid other work; 0: not known
    answer_token_seconds: float = 0.0  # likewise of an answer's token
    in_hand: int | None = None  # requests that it has taken and not finished, whoever sent them; None: it does not tell
    totals: WorkerTotals | None = None  # None: it does not tell


class Registration(msgspec.Struct, frozen=True):
    worker_id: str
    url: str  # http://host:port under which the controller reaches the worker
    model: ModelCard
    engine: str  # native | vllm | external
    device: str  # cpu | cuda:0
    max_running: int  # requests decoded at once
    started_at: float  # unix seconds
    load: WorkerLoad = WorkerLoad()


class RegistrationAnswer(msgspec.Struct, frozen=True):
    heartbeat_seconds: float
    lease_seconds: float


class Heartbeat(msgspec.Struct, frozen=True):
    load: WorkerLoad
    healthy: bool = True
    draining: bool = False  # it takes no new requests and finishes what it has in hand


class HeartbeatAnswer(msgspec.Struct, frozen=True):
    drain: bool = False  # the operator wants it to take no new requests; a 204 takes that back
