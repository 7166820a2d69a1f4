"""The answers of /admin, which are written without models of their own: here for the document, held to it by tests."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from server.health.breaker import BreakerState
from server.registry.states import WorkerState
from server.stats import Ended


class WorkerDescription(BaseModel):
    """Breaker, weight, `in_flight` and `recent_*` are this controller's own experience, of all its processes."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    url: str
    model: str
    version: str
    context_length: int
    engine: str
    device: str
    state: WorkerState = Field(description="Where its processes differ: what must not be missed first.")
    states: dict[WorkerState, int] = Field(description="Processes of this controller that see it so.")
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
    prompt_tokens_per_second: float | None = Field(description="null: it does not tell.")
    answer_tokens_per_second: float | None = Field(description="null: it does not tell.")
    prefix_hit_rate: float | None = Field(description="Of prompt tokens, 0 to 1; null: it does not tell, or none came.")
    image_hit_rate: float | None = Field(description="Of pictures, 0 to 1; null: it does not tell, or none came.")
    max_running: int
    running: int
    waiting: int
    kv_usage: float = Field(description="0 to 1.")
    kv_tokens: int
    started_at: float = Field(description="Unix seconds.")
    heard_at: float = Field(description="Unix seconds.")


class LostWorker(WorkerDescription):
    lost_seconds: float = Field(description="Since it was lost.")


class Processes(BaseModel):
    total: int
    missing: list[int] = Field(description="Places of those that did not answer in time and are not counted in.")


class Workers(BaseModel):
    workers: list[WorkerDescription]
    lost: list[LostWorker] = Field(description="Those whose lease ran out of late.")
    processes: Processes


class WorkerCount(BaseModel):
    total: int
    healthy: int


class Phases(BaseModel):
    """Where a request's time went, in seconds that add up to all of it."""

    prepare: float = Field(description="Body, key, pictures, admission.")
    lost: float = Field(description="Attempts that failed before the answer began.")
    queue: float = Field(description="As the worker reports.")
    prefill: float = Field(description="As the worker reports.")
    worker: float = Field(description="What the worker does not tell apart, and the way there and back.")
    decode: float
    sending: float = Field(description="Waiting for the client to take what it was sent.")


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
    version: str = Field(description="Of the model, at that worker.")
    retries: int
    carried_over: int = Field(description="Times that another worker took up the stream.")
    prompt_tokens: int
    completion_tokens: int
    prepare_seconds: float
    lost_seconds: float
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    send_seconds: float
    first_byte_seconds: float = Field(description="From its arrival; 0: no answer began.")
    seconds: float
    phases: Phases
    ended: Ended
    error: str = Field(description="An error's code.")


class History(BaseModel):
    """Each of the last `rate_seconds` seconds, the oldest first."""

    requests: list[int]
    tokens: list[int]
    errors: list[int] = Field(description="Faults of a server, and streams that broke.")


class Percentiles(BaseModel):
    """Seconds; null where there are none to count."""

    p50: float | None
    p90: float | None
    p99: float | None
    count: int


class Counts(BaseModel):
    """What came of the window's requests."""

    requests: int
    tokens: int
    failed: int
    refused_429: int
    limits_hit: int = Field(description="Of those, by a limit of a key.")
    quarantined: int
    retries: int
    carried_over: int
    broken: int
    client_left: int


class ErrorKind(BaseModel):
    status: int
    code: str
    count: int
    last: float = Field(description="Unix seconds.")
    request_id: str = Field(description="The last one's.")


class Statistics(BaseModel):
    time: float = Field(description="Unix seconds.")
    registry: Literal["connected", "lost"] = Field(description="Whether Redis is reached.")
    limits: Literal["shared", "local", "refusing"] = Field(description="Where keys' limits are held now.")
    actions: bool = Field(description="Whether operators can act: there is an admin key.")
    processes: Processes
    workers: WorkerCount
    states: dict[WorkerState, int] = Field(description="Workers in each state.")
    in_flight: int
    running: int
    waiting: int
    rate_seconds: int = Field(description="What rates are averaged over.")
    requests_per_second: float
    tokens_per_second: float
    errors_per_second: float
    requests_total: int = Field(description="Since the controller started.")
    tokens_total: int = Field(description="Since the controller started.")
    history: History
    window_seconds: int = Field(description="As asked; what follows but `recent` is of it.")
    ttft_seconds: Percentiles = Field(description="Of streams: to the first token.")
    inter_token_seconds: Percentiles
    latency_seconds: Percentiles = Field(description="Of whole answers.")
    counts: Counts
    errors: list[ErrorKind] = Field(description="The latest first.")
    slowest: list[RequestStory] = Field(description="The slowest first.")
    recent: list[RequestStory] = Field(description="The newest first.")
