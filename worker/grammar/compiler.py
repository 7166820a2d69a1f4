"""From a form to a compiled grammar: tried in a process of its own, compiled on a thread of its own, kept for the next.

The same form asked for by several requests at once is compiled once; when all of them have left, the work is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from llguidance import LLMatcher

from worker.grammar.errors import GrammarBusy, GrammarError, plain
from worker.grammar.limits import LIMITS
from worker.grammar.matcher import AnswerMatcher, MaskThreads
from worker.grammar.prover import Prover
from worker.grammar.source import GrammarSource
from worker.grammar.vocabulary import GrammarVocabulary


@dataclass(frozen=True)
class CompilerLimits:
    seconds: float = 5.0  # of one compilation
    step_seconds: float = 2.0  # that a draw waits for a mask
    max_waiting: int = 32  # forms that may wait to be compiled
    cache_entries: int = 64
    cache_bytes: int = 4 * 2**20  # of their texts; compiled they are larger, by a bounded factor
    threads: int = 2  # that compute masks


class CompilerObserver(Protocol):
    """Who counts. Called on the event loop."""

    def grammar_found(self, cached: bool) -> None: ...

    def grammar_compiled(self, seconds: float) -> None: ...


class SilentCompilerObserver:
    """Counts nothing."""

    def grammar_found(self, cached: bool) -> None:
        pass

    def grammar_compiled(self, seconds: float) -> None:
        pass


class CompiledGrammar:
    """A grammar that any number of answers can follow."""

    def __init__(self, start: LLMatcher, vocabulary: GrammarVocabulary, threads: MaskThreads) -> None:
        self.spoiled = False  # an answer failed in it; what the library has built is not to be used again
        self._start = start
        self._vocabulary = vocabulary
        self._threads = threads

    def matcher(self) -> AnswerMatcher:
        """The state of one answer that has not begun."""
        return AnswerMatcher(self._start.deep_copy(), self._vocabulary, self._threads, self._spoil)

    def _spoil(self) -> None:
        self.spoiled = True


@dataclass
class _Compilation:
    task: asyncio.Task[CompiledGrammar]
    waiting: int = 0


class GrammarCompiler:
    """`await compile(source)`. Of one event loop."""

    def __init__(
        self,
        make_vocabulary: partial[GrammarVocabulary],
        limits: CompilerLimits,
        observer: CompilerObserver | None = None,
    ) -> None:
        self._make_vocabulary = make_vocabulary
        self._limits = limits
        self._observer = observer or SilentCompilerObserver()
        self._vocabulary: GrammarVocabulary | None = None
        self._prover = Prover(limits.seconds)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar-compile")
        self._masks = MaskThreads(limits.threads, limits.step_seconds)
        self._cache: OrderedDict[GrammarSource, CompiledGrammar] = OrderedDict()
        self._cached_bytes = 0
        self._under_way: dict[GrammarSource, _Compilation] = {}

    @property
    def cached(self) -> int:
        """Grammars kept."""
        return len(self._cache)

    @property
    def cached_bytes(self) -> int:
        """Bytes of their texts."""
        return self._cached_bytes

    @property
    def under_way(self) -> int:
        """Compilations that somebody waits for."""
        return len(self._under_way)

    def close(self) -> None:
        self._prover.close()
        self._masks.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def compile(self, source: GrammarSource) -> CompiledGrammar:
        """Raises GrammarError with the reason; GrammarBusy when too many wait."""
        known = self._cache.get(source)
        if known is not None and not known.spoiled:
            self._cache.move_to_end(source)
            self._observer.grammar_found(True)
            return known
        self._observer.grammar_found(False)
        compilation = self._under_way.get(source)
        if compilation is None:
            if len(self._under_way) >= self._limits.max_waiting:
                raise GrammarBusy
            task = asyncio.create_task(self._compile(source))
            compilation = self._under_way[source] = _Compilation(task)
            task.add_done_callback(lambda _: self._under_way.pop(source, None))
        compilation.waiting += 1
        try:
            return await asyncio.shield(compilation.task)
        finally:
            compilation.waiting -= 1
            if not compilation.waiting and not compilation.task.done():
                self._under_way.pop(source, None)
                compilation.task.cancel()

    async def _compile(self, source: GrammarSource) -> CompiledGrammar:
        begun = time.perf_counter()
        try:
            compiled = await asyncio.get_running_loop().run_in_executor(self._thread, self._build, source.text)
        except asyncio.CancelledError:
            self._prover.interrupt(source.text)
            raise
        finally:
            self._observer.grammar_compiled(time.perf_counter() - begun)
        self._keep(source, compiled)
        return compiled

    def _build(self, text: str) -> CompiledGrammar:
        """On the compiling thread. What the trial has passed is short work."""
        self._prover.prove(text)
        if self._vocabulary is None:
            self._vocabulary = self._make_vocabulary()
        start = LLMatcher(self._vocabulary.tokenizer, text, log_level=0, limits=LIMITS)
        if not start.is_error():
            start.compute_bitmask()  # builds what every answer begins with
        if start.is_error():
            raise GrammarError(plain(start.get_error()))
        return CompiledGrammar(start, self._vocabulary, self._masks)

    def _keep(self, source: GrammarSource, compiled: CompiledGrammar) -> None:
        self._drop(source)
        self._cache[source] = compiled
        self._cached_bytes += source.size
        while self._cache and (
            len(self._cache) > self._limits.cache_entries or self._cached_bytes > self._limits.cache_bytes
        ):
            self._drop(next(iter(self._cache)))

    def _drop(self, source: GrammarSource) -> None:
        if self._cache.pop(source, None) is not None:
            self._cached_bytes -= source.size
