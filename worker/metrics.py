"""The worker's metrics, under vLLM's names so that existing dashboards work, and the same under `tephra:`.

Each series is kept once and shown under both names; what vLLM does not have is shown under ours alone. The engine
reports from its own thread through `EngineObserver`; prometheus-client's collectors take that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from server.protocol.registration import WorkerTotals
from worker.engine.observer import RequestReport, StepReport
from worker.engine.protocol import EngineLoad
from worker.pace import Pace

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_TOKENS = tuple(mantissa * 10**power for power in range(5) for mantissa in (1, 2, 5))


_SHARED = ("vllm:", "tephra:")
_OURS = ("tephra:",)


class WorkerMetrics:
    """An `EngineObserver` with a registry of its own, so that several workers can live in one process."""

    def __init__(self, model: str, version: str) -> None:
        self._model = model
        self._registry = CollectorRegistry()
        self.pace = Pace()
        self.totals = WorkerTotals()  # replaced as a whole, so that any thread may read it
        self._preemptions = self._counter("num_preemptions", "Requests set back for want of KV blocks.")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens computed.")
        self._generation_tokens = self._counter("generation_tokens", "Answer tokens drawn.")
        self._prefix_queries = self._counter("prefix_cache_queries", "Prompt tokens looked for in the prefix cache.")
        self._prefix_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._image_queries = self._counter("mm_cache_queries", "Images looked for in the vision-feature cache.")
        self._image_hits = self._counter("mm_cache_hits", "Images found there, or being encoded for another request.")
        self._success = Counter(
            "request_success", "Requests finished, by reason.", ("model_name", "finished_reason"), registry=None
        )
        self._show(self._success, _SHARED)
        self._inter_token = self._histogram("inter_token_latency_seconds", "Between two tokens.", _STEP_SECONDS)
        self._first_token = self._histogram("time_to_first_token_seconds", "Arrival to first token.", _SECONDS)
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "A request's mean time a token after the first.", _STEP_SECONDS
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to end.", _SECONDS)
        self._queue = self._histogram("request_queue_time_seconds", "Arrival to first step.", _SECONDS)
        self._prefill = self._histogram("request_prefill_time_seconds", "First step to first token.", _SECONDS)
        self._decode = self._histogram("request_decode_time_seconds", "First token to last.", _SECONDS)
        self._inference = self._histogram("request_inference_time_seconds", "First step to last token.", _SECONDS)
        self._request_prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._request_answer = self._histogram("request_generation_tokens", "Answer tokens of a request.", _TOKENS)

        self._images = self._counter("encoded_images", "Images that went through the vision tower.", _OURS)
        self._tiles = self._counter("encoded_tiles", "Tiles that went through the vision tower.", _OURS)
        self._deadlines = Counter(
            "deadlines_exceeded",
            "Requests whose time ran out, by where they were then.",
            ("model_name", "stage"),
            registry=None,
        )
        self._show(self._deadlines, _OURS)
        self._failures = self._counter("request_failures", "Requests that ended with an engine error.", _OURS)
        self.media_fetches = Counter(
            "media_fetches", "Images fetched for requests, by outcome.", ("outcome",), registry=None
        )
        self._show(self.media_fetches, _OURS)
        self._grammar_requests = Counter(
            "grammar_requests",
            "Requests for an answer of a given form, by kind.",
            ("model_name", "kind"),
            registry=None,
        )
        self._show(self._grammar_requests, _OURS)
        self._grammar_rejections = Counter(
            "grammar_rejections", "Of these, those whose form was refused.", ("model_name", "kind"), registry=None
        )
        self._show(self._grammar_rejections, _OURS)
        self._grammar_queries = self._counter("grammar_cache_queries", "Compiled forms looked up.", _OURS)
        self._grammar_hits = self._counter("grammar_cache_hits", "Of these, those that were there.", _OURS)
        self._grammar_seconds = self._histogram(
            "grammar_compile_seconds", "Trying and compiling one form.", _STEP_SECONDS, _OURS
        )
        self._step = self._histogram("step_seconds", "One engine step.", _STEP_SECONDS, _OURS)
        info = Gauge("version_info", "The weights that answer.", ("model_name", "version"), registry=None)
        info.labels(model, version).set(1)
        self._show(info, _OURS)

    def follow_load(self, load: Callable[[], EngineLoad]) -> None:
        """Shows what the engine has in hand when Prometheus asks, so that it holds after the last request too."""
        for name, documentation, read in (
            ("num_requests_running", "Requests that the engine works on.", lambda: load().running),
            ("num_requests_waiting", "Requests that wait for their first step.", lambda: load().waiting),
            ("kv_cache_usage_perc", "Share of the KV cache's blocks in use, 0 to 1.", lambda: load().kv_usage),
        ):
            self._gauge(name, documentation).set_function(read)
        for name, documentation, read in (
            ("feature_cache_bytes", "Image features kept that no request needs now.", lambda: load().feature_bytes),
            ("feature_cache_images", "How many images those are of.", lambda: load().feature_images),
            ("features_held", "Images whose features running requests hold.", lambda: load().features_held),
            ("block_checks", "Steps after which the books of blocks were checked.", lambda: load().block_checks),
            ("block_faults", "Of those, steps after which they did not agree.", lambda: load().block_faults),
        ):
            self.follow(name, documentation, read)

    def follow(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Shows a number of ours that is read when Prometheus asks."""
        self._gauge(name, documentation, _OURS).set_function(read)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def step_finished(self, report: StepReport) -> None:
        self.pace.add(report.prefill_tokens, report.decode_tokens, report.seconds)
        self._preemptions.inc(report.preemptions)
        self._prompt_tokens.inc(report.prefill_tokens)
        self._generation_tokens.inc(report.drawn_tokens)
        self._images.inc(report.encoded_images)
        self._tiles.inc(report.encoded_tiles)
        self._prefix_queries.inc(report.prefix_queries)
        self._prefix_hits.inc(report.prefix_hits)
        self._image_queries.inc(report.image_queries)
        self._image_hits.inc(report.image_hits)
        self._failures.inc(report.failures)
        before = self.totals
        self.totals = WorkerTotals(
            prompt_tokens=before.prompt_tokens + report.prefill_tokens,
            answer_tokens=before.answer_tokens + report.drawn_tokens,
            prefix_queries=before.prefix_queries + report.prefix_queries,
            prefix_hits=before.prefix_hits + report.prefix_hits,
            image_queries=before.image_queries + report.image_queries,
            image_hits=before.image_hits + report.image_hits,
        )
        self._step.observe(report.seconds)
        for seconds in report.inter_token_seconds:
            self._inter_token.observe(seconds)

    def request_finished(self, report: RequestReport) -> None:
        if report.outcome != "error":
            self._success.labels(self._model, report.outcome).inc()
        self._request_prompt.observe(report.prompt_tokens)
        self._request_answer.observe(report.answer_tokens)
        self._e2e.observe(report.total_seconds)
        for histogram, seconds in (
            (self._queue, report.queue_seconds),
            (self._prefill, report.prefill_seconds),
            (self._decode, report.decode_seconds),
            (self._inference, report.inference_seconds),
            (self._first_token, report.first_token_seconds),
            (self._per_token, report.seconds_per_token),
        ):
            if seconds is not None:
                histogram.observe(seconds)

    def deadline_exceeded(self, stage: Literal["intake", "queue", "answer"]) -> None:
        self._deadlines.labels(self._model, stage).inc()

    def grammar_asked(self, kind: str) -> None:
        self._grammar_requests.labels(self._model, kind).inc()

    def grammar_rejected(self, kind: str) -> None:
        self._grammar_rejections.labels(self._model, kind).inc()

    def grammar_found(self, cached: bool) -> None:
        self._grammar_queries.inc()
        self._grammar_hits.inc(cached)

    def grammar_compiled(self, seconds: float) -> None:
        self._grammar_seconds.observe(seconds)

    def _counter(self, name: str, documentation: str, prefixes: tuple[str, ...] = _SHARED) -> Counter:
        counter = Counter(name, documentation, ("model_name",), registry=None)
        self._show(counter, prefixes)
        return counter.labels(self._model)

    def _gauge(self, name: str, documentation: str, prefixes: tuple[str, ...] = _SHARED) -> Gauge:
        gauge = Gauge(name, documentation, ("model_name",), registry=None)
        self._show(gauge, prefixes)
        return gauge.labels(self._model)

    def _histogram(
        self, name: str, documentation: str, buckets: tuple[float, ...], prefixes: tuple[str, ...] = _SHARED
    ) -> Histogram:
        histogram = Histogram(name, documentation, ("model_name",), buckets=buckets, registry=None)
        self._show(histogram, prefixes)
        return histogram.labels(self._model)

    def _show(self, metric: Collector, prefixes: tuple[str, ...]) -> None:
        self._registry.register(_Prefixed(metric, prefixes))


class _Prefixed(Collector):
    """Shows one metric under each of the prefixes."""

    def __init__(self, metric: Collector, prefixes: tuple[str, ...]) -> None:
        self._metric = metric
        self._prefixes = prefixes

    def collect(self) -> Iterable[Metric]:
        for family in self._metric.collect():
            for prefix in self._prefixes:
                shown = Metric(prefix + family.name, family.documentation, family.type)
                shown.samples = [sample._replace(name=prefix + sample.name) for sample in family.samples]
                yield shown
