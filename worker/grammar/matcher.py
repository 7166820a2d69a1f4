"""One answer on its way through a grammar: which tokens may come next.

The mask for the next token is computed on threads of its own, from the moment that the last token is drawn; the engine
picks it up when it draws again, and waits a bounded time. So a grammar that is slow to follow costs its own answer, and
not those that share the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout

import numpy as np
from llguidance import LLMatcher

from worker.grammar.errors import plain
from worker.grammar.vocabulary import GrammarVocabulary

logger = logging.getLogger(__name__)

STUCK = "the form that was asked for comes to a place where no token can follow"
TOO_SLOW = "the form that was asked for takes too long to follow"
LOST = "the form that was asked for was lost track of"
BROKEN = "the form that was asked for could not be followed; see the worker's log"


class MaskThreads:
    """Where masks are computed. `step_seconds` is the longest that a draw waits for one."""

    def __init__(self, threads: int, step_seconds: float) -> None:
        self.step_seconds = step_seconds
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="grammar-mask")

    def submit(self, work: Callable[[], _Mask]) -> Future[_Mask]:
        return self._pool.submit(work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


_Mask = np.ndarray | str  # packed bits, or why there is none


class AnswerMatcher:
    """`worker.engine.protocol.Constraint` for one answer.

    The engine's thread calls it, one call at a time. `failure`, once set, says why the answer ended before its form was
    complete.
    """

    def __init__(
        self, matcher: LLMatcher, vocabulary: GrammarVocabulary, threads: MaskThreads, on_failure: Callable[[], None]
    ) -> None:
        self.failure: str | None = None
        self.end_token_id = vocabulary.end_token_id
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._threads = threads
        self._on_failure = on_failure
        self._position = 0  # tokens taken
        self._next = threads.submit(self._compute)

    def allowed(self, position: int) -> np.ndarray | None:
        """The tokens that may stand at `position`, packed [ceil(vocabulary / 8)] uint8, token 0 in the lowest bit.

        None once the answer has failed. An engine that begins the answer anew begins at position 0.
        """
        if position == 0 and self._position:
            self._restart()
        if self.failure is None and position != self._position:
            self.fail(LOST)
        if self.failure is not None:
            return None
        try:
            mask = self._next.result(self._threads.step_seconds)
        except FutureTimeout:
            mask = TOO_SLOW
        except Exception:  # ours, not the grammar's; the others in the batch must not fail with it
            logger.exception("computing a mask failed")
            mask = BROKEN
        if isinstance(mask, str):
            self.fail(mask)
            return None
        return mask

    def take(self, token_id: int) -> None:
        """Takes the token drawn at the position that was asked for last."""
        self._position += 1
        if self.failure is None and token_id not in self._vocabulary.end_token_ids:
            before = self._next
            self._next = self._threads.submit(lambda: self._advance([token_id], before))

    def follow(self, token_ids: Sequence[int]) -> None:
        """Takes tokens that were drawn elsewhere, before any was drawn here; no mask is made for what lies behind."""
        self._position += len(token_ids)
        before = self._next
        self._next = self._threads.submit(lambda: self._advance(token_ids, before))

    def fail(self, reason: str = STUCK) -> None:
        """Ends the answer; the first reason counts."""
        if self.failure is None:
            self.failure = reason
            self._on_failure()

    def _restart(self) -> None:
        self._next.cancel()
        if not self._next.cancelled():
            self._next.exception(self._threads.step_seconds)
        self._matcher.reset()
        self._position, self.failure = 0, None
        self._next = self._threads.submit(self._compute)

    def _advance(self, token_ids: Sequence[int], before: Future[_Mask]) -> _Mask:
        wait([before])  # begun earlier, maybe on another thread: the library takes one call at a time
        if not all(self._matcher.consume_token(token_id) for token_id in token_ids):
            return plain(self._matcher.get_error())
        return self._compute()

    def _compute(self) -> _Mask:
        """On a mask thread: the packed mask, special tokens aside; the end token where the grammar accepts."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            return plain(self._matcher.get_error())
        drawable = self._vocabulary.drawable
        return packed[: len(drawable)] & drawable
