"""What the controller counts, for Prometheus. Names follow vLLM's where the thing is the same, under our prefix.

Each controller has a registry of its own, so that several can live in one process (tests do that). Labels come from
bounded sets only: routes, statuses, outcomes, and workers that proved the secret (dropped when they are forgotten).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

from server.shared_metrics import shared_exposition

_PREFIX = "tephra_controller"
_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TTFT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The collectors, made once."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._live: list[Collector] = []
        self.requests = self._counter("requests", "Requests answered, by route and status.", "route", "status")
        self.in_flight = self._gauge("num_requests_running", "Requests under way in this controller.", merge="livesum")
        self.inflight_bytes = self._gauge(
            "inflight_bytes", "Memory held for request bodies and pictures under way.", merge="livesum"
        )
        self.connections = self._gauge("connections", "Clients' connections that are open.", merge="livesum")
        self.connections_dropped = self._counter(
            "connections_dropped", "Clients' connections that were one too many, by what became of them.", "verdict"
        )
        self.ttft = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to the first byte of a streamed answer.", _TTFT
        )
        self.latency = self._histogram(
            "e2e_request_latency_seconds", "From a request's arrival to its end.", _LATENCY, "route"
        )
        self.generation_tokens = self._counter("generation_tokens", "Answer tokens relayed (as reported or as seen).")
        self.worker_requests = self._counter("worker_requests", "Attempts sent to a worker.", "worker", "outcome")
        self.retries = self._counter("retries", "Attempts repeated at another worker.", "reason")
        self.streams_carried_over = Counter(
            "tephra:streams_carried_over",
            "Streams that another worker carried on, by what had become of the one before.",
            ("reason",),
            registry=self.registry,
        )
        self.requests_quarantined = self._counter("requests_quarantined", "Requests at which two workers were lost.")
        self.quarantine_refusals = self._counter("quarantine_refusals", "Requests refused because they are the same.")
        self.streams_broken = self._counter("streams_broken", "Streams that ended with an error event.", "reason")
        self.client_disconnects = self._counter("client_disconnects", "Clients that left before their answer's end.")
        self.workers = self._gauge("workers", "Workers registered, by state.", "state")
        self.registry_connected = self._gauge("registry_connected", "1 while shared state (Redis) can be reached.")
        self.registrations = self._counter(
            "registrations", "Workers that joined, left or were forgotten, each counted by one controller.", "event"
        )
        self.keys_valid = self._gauge(
            "keys_valid", "0 while the file of keys cannot be read and the last good keys hold."
        )
        self.limits_shared = self._gauge("limits_shared", "1 while limits are held in Redis for all controllers.")
        self.rate_limited = self._counter("rate_limited", "Requests refused by a limit of their key.", "limit")
        self.deadlines_exceeded = self._counter("deadlines_exceeded", "Requests ended because their time was over.")
        self.worker_transitions = self._counter("worker_transitions", "Changes of workers' states.", "state")
        self.breaker_changes = self._counter("breaker_changes", "Breakers' new states, with why.", "state", "reason")
        self.worker_ejections = self._counter("worker_ejections", "Workers set aside as outliers.", "fault")
        self.routing_decisions = self._counter("routing_decisions", "Workers chosen, by why.", "reason")
        self.admin_actions = self._counter("admin_actions", "What operators asked for.", "action", "outcome")
        self.media_fetches = self._counter("media_fetches", "Pictures fetched for requests, by outcome.", "outcome")
        self.media_fetches_running = self._gauge(
            "media_fetches_running", "Pictures being fetched now.", merge="livesum"
        )
        self.media_fetches_joined = self._counter(
            "media_fetches_joined", "Pictures asked for while the same tenant's fetch of them was under way."
        )
        self.media_cache_queries = self._counter("media_cache_queries", "Pictures asked for by URL.")
        self.media_cache_hits = self._counter("media_cache_hits", "Pictures asked for by URL that were still kept.")
        self.media_cache_bytes = self._gauge(
            "media_cache_bytes", "Memory held for fetched pictures that are kept.", merge="livesum"
        )
        self.image_rejections = self._counter(
            "image_rejections", "Requests refused because of a picture, before anything was decoded.", "reason"
        )

    def forget_worker(self, worker_id: str) -> None:
        for outcome in ("ok", "refused", "failed", "unreachable", "abandoned", "expired"):
            self.worker_requests.remove(worker_id, outcome)

    def exposition(self, workers: Collection[str]) -> bytes:
        """Of all processes of this controller. `workers`: ids of those that are members now."""
        return shared_exposition(workers, self._live) or generate_latest(self.registry)

    def add_live(self, collector: Collector) -> None:
        """What is not counted but made when Prometheus asks."""
        self._live.append(collector)
        self.registry.register(collector)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str, merge: Literal["livesum", "livemin"] = "livemin") -> Gauge:
        """`merge`: what several processes of a controller tell together; livemin where each tells of the same thing."""
        return Gauge(f"{_PREFIX}_{name}", help, labels, registry=self.registry, multiprocess_mode=merge)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}", help, labels, buckets=buckets, registry=self.registry)
