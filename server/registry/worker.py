"""A worker as this controller knows it: what it told, what came of requests to it, and what is under way there.

Plain memory; no Redis, no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.health.breaker import BreakerState
from server.health.rules import HealthRules
from server.health.worker import WorkerHealth
from server.logs import log
from server.metrics import Metrics
from server.protocol.registration import ModelCard, WorkerLoad
from server.registry.costs import Measure
from server.registry.progress import Progress
from server.registry.records import Drain, WorkerRecord
from server.registry.states import WorkerState
from server.routing.base import TYPICAL_COSTS, TokenCosts, Work


class Worker:
    """A member, with this controller's account of it."""

    def __init__(
        self, record: WorkerRecord, rules: HealthRules, metrics: Metrics, *, established: bool, settle_seconds: float
    ) -> None:
        """`settle_seconds`: after which every controller has heard of a drain."""
        self.record = record
        self._rules = rules
        self._metrics = metrics
        self.health = self._new_health(established=established)
        self.drain: Drain | None = None
        self.costs: TokenCosts = TYPICAL_COSTS  # the table keeps them
        self.in_flight = 0
        self.lost = False  # its lease ran out
        self.gone = False  # no member any more, for whichever reason
        self.heard_here_at = float("-inf")  # monotonic: its last heartbeat that came to this controller
        self.drain_set_at = float("-inf")  # monotonic: when an operator's word came to this controller
        self._heard_at = time.monotonic()  # its last report that came here by whichever way
        self._measured_at = self._heard_at  # the last that told other costs of tokens than the one before
        self._drained_since = float("inf")  # monotonic: when this controller heard of the drain
        self._resumes_until = float("-inf")  # monotonic: until then it has heard that its drain was taken back
        self._settle_seconds = settle_seconds
        self._own = _Tokens()
        self._foreign = _Tokens.reported(record.load)
        self.progress = Progress(record.load.totals)
        self._awaited: set[asyncio.Timeout] = set()

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def url(self) -> str:
        return self.record.registration.url

    @property
    def card(self) -> ModelCard:
        return self.record.registration.model

    @property
    def slots(self) -> int:
        return self.record.registration.max_running

    @property
    def weight(self) -> float:
        return self.health.weight

    @property
    def healthy(self) -> bool:
        return self.record.healthy and not self.lost

    @property
    def draining(self) -> bool:
        """By an operator's word or by its own."""
        return self.drain is not None or self.record.draining

    @property
    def takes_requests(self) -> bool:
        """As far as it and its operators say; `health` says what became of requests."""
        return self.healthy and not self.draining

    @property
    def drained(self) -> bool:
        """Nothing is in flight there, from any controller, and nothing will be.

        A worker that counts what it has in hand says so once it has shut its door. One that does not (another server
        behind us) is taken at its word that nothing runs or waits, in a report from after every controller knew.
        """
        if not self.draining or self.in_flight:
            return False
        if self.drain is None and time.monotonic() < self._resumes_until:
            return False  # it drains by a word that was taken back, and may open its door at any moment
        load = self.record.load
        if load.in_hand is not None:
            return self.record.draining and not load.in_hand
        settled = self._heard_at - self._drained_since >= self._settle_seconds
        return settled and not load.running and not load.waiting

    @property
    def state(self) -> WorkerState:
        """What decides about requests comes first."""
        if self.lost:
            return "lost"
        if self.draining:
            return "drained" if self.drained else "draining"
        if not self.record.healthy:
            return "unhealthy"
        breaker = self.health.breaker
        if breaker != "closed":
            return breaker
        if not self.record.beats:
            return "joining"
        return "slow_start" if self.weight < 1.0 else "healthy"

    @property
    def silent_seconds(self) -> float:
        """Since its last report."""
        return time.monotonic() - self._heard_at

    @property
    def unheard_seconds(self) -> float:
        """Since its last report, or since it was taken to be alive without one."""
        return time.monotonic() - max(self._heard_at, self.heard_here_at)

    @property
    def measure(self) -> Measure:
        """What tokens cost there, as it told last."""
        return Measure(_costs(self.record.load), time.monotonic() - self._measured_at)

    @property
    def outstanding_tokens(self) -> int:
        """Own work by estimate, plus what the worker reported beyond it (other controllers' work)."""
        return self._own.prompt + self._own.answer + self._foreign.prompt + self._foreign.answer

    @property
    def queue_seconds(self) -> float:
        """The same as time, by what a token costs there."""
        own, foreign = self._own, self._foreign
        return self.costs.seconds(own.prompt + foreign.prompt, own.answer + foreign.answer)

    def update(self, record: WorkerRecord) -> None:
        if record != self.record:
            self._heard_at = time.monotonic()
            if _costs(record.load) != _costs(self.record.load):
                self._measured_at = self._heard_at
            self.progress.note(record.load.totals)
            self._foreign = _Tokens.reported(record.load).beyond(self._own)
        if record.registration.started_at != self.record.registration.started_at:
            self.health = self._new_health()  # a new process under the old name
        self.record = record

    def set_drain(self, drain: Drain | None) -> None:
        if drain == self.drain:
            return
        self.drain_set_at = time.monotonic()
        if self.drain is None:
            self._drained_since = self.drain_set_at
        if drain is None:
            self.health.recover()  # its caches have cooled, and what failed before the drain is past
            self._resumes_until = self.drain_set_at + self._settle_seconds
        self.drain = drain

    @contextmanager
    def assigned(self, work: Work) -> Iterator[None]:
        """Counts `work` as under way here, for one attempt, of which `health.record` is to be told."""
        self.in_flight += 1
        self._own.prompt += work.prompt_tokens
        self._own.answer += work.answer_tokens
        try:
            with self.health.attempt():
                yield
        finally:
            self.in_flight -= 1
            self._own.prompt -= work.prompt_tokens
            self._own.answer -= work.answer_tokens

    @contextmanager
    def awaited(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """While inside, `timeout` runs out at once if the worker's lease does: nobody waits for the dead."""
        self._awaited.add(timeout)
        try:
            yield
        finally:
            self._awaited.discard(timeout)

    def _new_health(self, *, established: bool = False) -> WorkerHealth:
        return WorkerHealth(self._rules, established=established, changed=self._breaker_changed)

    def _breaker_changed(self, state: BreakerState, reason: str) -> None:
        self._metrics.breaker_changes.labels(state, reason).inc()
        level = logging.WARNING if state == "open" else logging.INFO
        log(level, "worker's breaker changed", worker=self.id, state=state, reason=reason)

    def give_up(self) -> None:
        """Its lease ran out."""
        self.lost = self.gone = True
        for timeout in self._awaited:
            timeout.reschedule(asyncio.get_running_loop().time())


@dataclass
class _Tokens:
    prompt: int = 0
    answer: int = 0

    @classmethod
    def reported(cls, load: WorkerLoad) -> _Tokens:
        """Where the kinds are not told apart, all count as an answer's, which are the dearer ones."""
        prompt = min(max(0, load.outstanding_prompt_tokens), max(0, load.outstanding_tokens))
        return cls(prompt, max(0, load.outstanding_tokens) - prompt)

    def beyond(self, own: _Tokens) -> _Tokens:
        return _Tokens(max(0, self.prompt - own.prompt), max(0, self.answer - own.answer))


def _costs(load: WorkerLoad) -> TokenCosts:
    return TokenCosts(load.prompt_token_seconds, load.answer_token_seconds)
