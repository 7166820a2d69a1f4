"""The answers of /admin, which are written without models of their own: here for the document, held to it by tests."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from server.health.breaker import BreakerState
from server.registry.states import WorkerState
from server.stats import Ended


class WorkerDescription(BaseModel):
    """Breaker, weight, `in_flight` and `recent_*` are this controller's own experience."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    url: str
    model: str
    version: str
    context_length: int
    engine: str
    device: str
    state: WorkerState
    healthy: bool = Field(description="Whether it gets requests.")
    breaker: BreakerState
    breaker_reason: str
    weight: float = Field(description="Of its share of the requests; below 1 while it starts slowly.")
    draining_since: float | None = Field(description="Unix seconds; null: no operator drains it.")
    safe_to_stop: bool
    in_flight: int = Field(description="Requests of this controller under way there.")
    in_hand: int | None = Field(description="Requests under way there, whoever sent them; null: it does not tell.")
    queue_seconds: float = Field(description="Work ahead of a new request, by what a token costs there.")
    outstanding_tokens: int
    recent_attempts: int
    recent_failures: int
    first_token_seconds: float | None = Field(description="Median of late.")
    max_running: int
    running: int
    waiting: int
    kv_usage: float = Field(description="0 to 1.")
    kv_tokens: int
    started_at: float = Field(description="Unix seconds.")
    heard_at: float = Field(description="Unix seconds.")


class LostWorker(WorkerDescription):
    lost_seconds: float = Field(description="Since it was lost.")


class Workers(BaseModel):
    workers: list[WorkerDescription]
    lost: list[LostWorker] = Field(description="Those whose lease ran out of late.")


class Count(BaseModel):
    total: int
    healthy: int


class RequestStory(BaseModel):
    """One request's way, without any of its content."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    route: str
    started_at: float = Field(description="Unix seconds.")
    key: str = Field(description="Name of the client's key.")
    model: str
    stream: bool
    images: int
    asked_version: str
    session: str = Field(description="A digest.")
    status: int = Field(description="499: the client left before an answer began.")
    worker: str
    retries: int
    carried_over: int = Field(description="Times that another worker took up the stream.")
    prompt_tokens: int
    completion_tokens: int
    prepare_seconds: float
    first_byte_seconds: float
    seconds: float
    ended: Ended
    error: str = Field(description="An error's code.")


class Statistics(BaseModel):
    """Of this moment; beside it stand the rates and percentiles that the dashboard draws."""

    time: float = Field(description="Unix seconds.")
    registry: str = Field(description="connected or lost: whether Redis is reached.")
    workers: Count
    states: dict[str, int] = Field(description="Workers in each state.")
    in_flight: int
    running: int
    waiting: int
    recent: list[RequestStory] = Field(description="The newest first.")
