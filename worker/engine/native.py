"""The native engine: our own model under continuous batching, on a thread of its own.

The event loop and the thread meet at two places. Requests and cancellations go into an inbox under a lock, which the
thread empties between steps; tokens go back with one `call_soon_threadsafe` a step. Everything else (scheduler, blocks,
model) is the thread's alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import torch

from model.llava import LlavaModel
from worker.engine.accounts import Accounts
from worker.engine.admission import check_request
from worker.engine.blocks import BlockAllocator
from worker.engine.config import EngineConfig
from worker.engine.decode_graphs import cuda_graphs
from worker.engine.features import FeatureCache
from worker.engine.memory import block_count
from worker.engine.observer import EngineObserver, SilentObserver
from worker.engine.paged_attention import KvCache
from worker.engine.protocol import (
    EngineError,
    EngineFailure,
    EngineLoad,
    EngineOutput,
    EngineOverloaded,
    EngineRequest,
)
from worker.engine.reporter import Reporter
from worker.engine.runner import Runner, StepResult
from worker.engine.scheduler import Scheduler, Step
from worker.engine.sequence import Sequence, SequenceState
from worker.engine.warm_up import warm_up

logger = logging.getLogger(__name__)

IMAGE_FAILED = "an image of this request could not be encoded; see the worker's log"
STEP_FAILED = "the engine failed while it computed this answer; the request can be sent again"
ENGINE_DIED = "the engine has stopped after a failure; this worker serves no more requests"
NOT_RUNNING = "the engine is not running"
OUT_OF_MEMORY = "the worker ran out of memory while it computed this answer; the request can be sent again"
STOP_SECONDS = 3.0  # the longest that `stop` waits for the step in hand

_Delivery = tuple[int, EngineOutput | EngineError]  # sequence number, what its reader gets next


@dataclass
class _Inbox:
    arrivals: list[Sequence] = field(default_factory=list)
    departures: list[Sequence] = field(default_factory=list)


class NativeEngine:
    """`worker.engine.protocol.Engine` over a LlavaModel. Raises ValueError for a configuration that cannot be.

    `weights` names the weights and the preprocessing: nothing that a cache holds is found under another name.
    """

    def __init__(
        self,
        model: LlavaModel,
        config: EngineConfig | None = None,
        observer: EngineObserver | None = None,
        *,
        weights: str = "",
    ) -> None:
        self._model = model
        self._weights = weights
        self._config = config or EngineConfig()
        self._reporter = Reporter(observer or SilentObserver())
        text = model.config.text
        self._allocator = BlockAllocator(
            block_count(self._config, text, model.dtype, model.device), self._config.block_size
        )
        self._features = FeatureCache(self._config.feature_cache_bytes)
        self._scheduler = Scheduler(self._config, self._allocator, self._features)
        self._accounts = Accounts(self._scheduler, self._allocator, self._features)
        self._context_length = min(text.context_length, self._config.context_length or text.context_length)
        self._runner: Runner | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failed = False
        # Shared with the thread, under `_wake`:
        self._wake = threading.Condition()
        self._inbox = _Inbox()
        self._stopping = False
        self._load = self._measure_load()
        # The event loop's alone:
        self._readers: dict[int, asyncio.Queue[EngineOutput | EngineError]] = {}
        self._arrived = 0

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together: the checkpoint's limit, or what the KV cache holds."""
        return min(self._context_length, self._allocator.tokens)

    @property
    def healthy(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and not self._failed

    async def start(self) -> None:
        """Starts the thread, which allocates the KV cache and warms up. Requests must come from this event loop.

        Raises what allocating or the model raises.
        """
        if self._thread is not None:
            raise EngineError("the engine was started before")
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[float] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="engine", daemon=True)
        self._thread.start()
        try:
            seconds = await ready
        except Exception:
            self._thread = None  # it has ended
            raise
        logger.info(
            "engine ready: %d KV blocks of %d tokens, context %d; warmed up in %.1f s",
            self._allocator.total,
            self._allocator.block_size,
            self.context_length,
            seconds,
        )

    async def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        thread = self._thread
        if thread is None:
            return
        await asyncio.to_thread(thread.join, STOP_SECONDS)
        if not thread.is_alive():
            self._runner = None  # and with it the KV pools
            return
        logger.warning("the engine's step takes longer than %g s; its answers end without it", STOP_SECONDS)
        self._hand_out([(number, EngineOutput(None, finish_reason="abort")) for number in self._readers])

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        check_request(request, self._model.config, self._context_length, self._allocator.tokens)
        sequence = self._accept(request)
        # One output a token, and one more for an error: the queue cannot overflow.
        reader: asyncio.Queue[EngineOutput | EngineError] = asyncio.Queue(request.sampling.max_tokens + 1)
        self._readers[sequence.number] = reader
        ended = False
        try:
            while not ended:
                item = await reader.get()
                if isinstance(item, EngineError):
                    ended = True
                    raise item
                ended = item.finish_reason is not None
                yield item
        finally:
            del self._readers[sequence.number]
            if not ended:
                self._cancel(sequence)

    def load(self) -> EngineLoad:
        with self._wake:
            load, arrivals = self._load, tuple(self._inbox.arrivals)
        return EngineLoad(
            running=load.running,
            waiting=load.waiting + len(arrivals),
            outstanding_tokens=load.outstanding_tokens + sum(sequence.remaining for sequence in arrivals),
            kv_usage=load.kv_usage,
            kv_tokens=load.kv_tokens,
            outstanding_prompt_tokens=load.outstanding_prompt_tokens
            + sum(sequence.prompt_length for sequence in arrivals),
            feature_images=self._features.kept,
            feature_bytes=self._features.kept_bytes,
            features_held=len(self._features) - self._features.kept,
            block_checks=self._accounts.checks,
            block_faults=self._accounts.faults,
        )

    def _make_cache(self) -> KvCache:
        model = self._model
        return KvCache(
            model.config.text,
            self._allocator.total,
            self._allocator.block_size,
            dtype=model.dtype,
            device=model.device,
        )

    # On the event loop.

    def _accept(self, request: EngineRequest) -> Sequence:
        """Puts a request into the inbox. Raises EngineOverloaded when too many wait."""
        sequence = Sequence.of(
            request,
            number=self._arrived,
            context_length=self.context_length,
            image_token_id=self._model.config.image_token_id,
            allocator=self._allocator,
            weights=self._weights,
            now=time.monotonic(),
        )
        with self._wake:
            if self._failed:
                raise EngineFailure(ENGINE_DIED)
            if self._stopping or self._thread is None:
                raise EngineFailure(NOT_RUNNING)
            waiting = self._load.waiting + len(self._inbox.arrivals)
            if waiting >= self._config.max_waiting:
                raise EngineOverloaded(
                    f"{waiting} requests are waiting already, the most that this worker lets wait", self._retry_after()
                )
            self._inbox.arrivals.append(sequence)
            self._wake.notify()
        self._arrived += 1
        return sequence

    def _retry_after(self) -> float:
        """Seconds until about half of the present work is done, by the pace of the last steps; 1 to 60."""
        pace = self._reporter.tokens_per_second
        return min(60.0, max(1.0, self._load.outstanding_tokens / 2 / pace)) if pace else 1.0

    def _cancel(self, sequence: Sequence) -> None:
        with self._wake:
            self._inbox.departures.append(sequence)
            self._wake.notify()

    def _hand_out(self, deliveries: list[_Delivery]) -> None:
        for number, item in deliveries:
            reader = self._readers.get(number)
            if reader is not None:
                reader.put_nowait(item)

    def _hand_failure(self) -> None:
        self._hand_out([(number, EngineFailure(ENGINE_DIED)) for number in self._readers])

    # On the engine's thread.

    def _run(self, ready: asyncio.Future[float]) -> None:
        if self._config.threads is not None:
            torch.set_num_threads(self._config.threads)
        try:
            seconds = self._prepare()
        except BaseException as error:
            self._runner = None
            self._call_loop(_fail, ready, error)
            return
        self._call_loop(_succeed, ready, seconds)
        try:
            with torch.inference_mode():
                while self._take_inbox():
                    self._deliver(self._step())
                    if self._config.check_blocks:
                        self._accounts.check()
            self._abort_all()
        except BaseException:
            logger.exception("the engine's thread died")
            with self._wake:
                self._failed = True
            self._call_loop(self._hand_failure)

    def _prepare(self) -> float:
        """Here, and not where it is asked for: only one thread of the process is to compute (`team.disband`)."""
        cache = self._make_cache()
        graphs = cuda_graphs(self._model, cache, self._config, self.context_length)
        self._runner = Runner(self._model, cache, graphs)
        return warm_up(self._model, self._runner, self._config, self._allocator.total)

    def _take_inbox(self) -> bool:
        """Waits for work and lets requests join and leave; False when the engine is to stop."""
        with self._wake:
            while not (self._stopping or self._scheduler.has_work or self._inbox.arrivals):
                self._inbox.departures.clear()
                self._wake.wait()
            inbox, self._inbox = self._inbox, _Inbox()
            for sequence in inbox.arrivals:
                self._scheduler.add(sequence)
            departed = [s for s in inbox.departures if s.state is not SequenceState.FINISHED]
            for sequence in departed:
                self._scheduler.finish(sequence)
            self._load = self._measure_load()
            go_on = not self._stopping
        for sequence in departed:
            self._reporter.request_finished(sequence, "abort")
        return go_on

    def _step(self) -> list[_Delivery]:
        """One step, if there is work: schedules, computes, and moves the sequences on."""
        if not self._scheduler.has_work:
            return []
        assert self._runner is not None
        begun = time.monotonic()
        step = self._scheduler.schedule()
        for chunk in step.chunks:
            timings = chunk.sequence.timings
            if timings.first_scheduled is None:
                timings.first_scheduled = begun
        try:
            result = self._runner.run(step)
        except Exception as error:
            logger.exception("a step of %d sequences failed", len(step.chunks))
            message = OUT_OF_MEMORY if _is_out_of_memory(error) else STEP_FAILED
            result = StepResult(
                failed=tuple((chunk.sequence, message) for chunk in step.chunks),
                broken=tuple(encoding.features for encoding in step.encodings),
            )
        return self._conclude(step, result, begun)

    def _conclude(self, step: Step, result: StepResult, begun: float) -> list[_Delivery]:
        now = time.monotonic()
        deliveries: list[_Delivery] = []
        gaps: list[float] = []
        for chunk in result.computed:
            self._scheduler.complete(chunk)
        failed = dict(result.failed)
        for features in result.broken:
            for sequence in self._scheduler.abandon(features):
                failed.setdefault(sequence, IMAGE_FAILED)
        for sequence, message in failed.items():
            self._scheduler.fail(sequence)
            self._reporter.request_finished(sequence, "error")
            deliveries.append((sequence.number, EngineFailure(message)))
        for sequence, draw in result.drawn:
            timings = sequence.timings
            queued = prefilled = 0.0
            if timings.last_token is None:
                timings.first_token = now
                started = timings.first_scheduled or begun
                queued, prefilled = started - timings.arrived, now - started
            else:
                gaps.append(now - timings.last_token)
            timings.last_token = now
            reason = sequence.append(draw.token_id)
            output = EngineOutput(
                draw.token_id,
                draw.logprobs,
                reason,
                stop_token=reason == "stop",
                cached_tokens=sequence.cached,
                queue_seconds=queued,
                prefill_seconds=prefilled,
            )
            deliveries.append((sequence.number, output))
            if reason is not None:
                self._scheduler.finish(sequence)
                self._reporter.request_finished(sequence, reason)
        with self._wake:
            self._load = self._measure_load()
        self._reporter.step_finished(step, len(failed), len(result.drawn), self._load, now - begun, tuple(gaps))
        return deliveries

    def _deliver(self, deliveries: list[_Delivery]) -> None:
        if deliveries:
            self._call_loop(self._hand_out, deliveries)

    def _call_loop(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            with self._wake:  # nobody is left to read: what runs is of no use
                self._stopping = True

    def _abort_all(self) -> None:
        left = [*self._scheduler.running, *self._scheduler.waiting]
        for sequence in left:
            self._scheduler.finish(sequence)
            self._reporter.request_finished(sequence, "abort")
        with self._wake:
            self._load = self._measure_load()
        self._deliver([(sequence.number, EngineOutput(None, finish_reason="abort")) for sequence in left])

    def _measure_load(self) -> EngineLoad:
        sequences = [*self._scheduler.running, *self._scheduler.waiting]
        return EngineLoad(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            outstanding_tokens=sum(sequence.remaining for sequence in sequences),
            kv_usage=self._allocator.usage,
            kv_tokens=self._allocator.tokens,
            outstanding_prompt_tokens=sum(max(0, sequence.prompt_length - sequence.computed) for sequence in sequences),
        )


def _succeed(ready: asyncio.Future[float], seconds: float) -> None:
    if not ready.done():  # else whoever waited was cancelled
        ready.set_result(seconds)


def _fail(ready: asyncio.Future[float], error: BaseException) -> None:
    if not ready.done():
        ready.set_exception(error)


def _is_out_of_memory(error: Exception) -> bool:
    """torch's CPU allocator raises a plain RuntimeError that only its text tells apart."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
