"""A compiler over the tiny checkpoint's vocabulary, and the shortest way from a form to an answer: drawn at random."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from worker.answers.token_bytes import TokenBytes
from worker.grammar.compiler import CompiledGrammar, CompilerLimits, GrammarCompiler
from worker.grammar.vocabulary import GrammarVocabulary
from worker.start import ModelFiles

SIZE, END, IMAGE = 320, 258, 259


class Bench:
    """What a grammar is tried on."""

    size, end, image = SIZE, END, IMAGE

    def __init__(self, files: ModelFiles) -> None:
        self.tokens = TokenBytes(files.prompter.tokenizer)
        self.encode: Callable[[str], list[int]] = files.prompter.encode_continuation
        self.make_vocabulary = partial(
            GrammarVocabulary, self.tokens, self.encode, size=SIZE, end_token_ids=(END,), structural=(IMAGE,)
        )

    @asynccontextmanager
    async def compiler(self, observer: Any = None, **limits: Any) -> AsyncIterator[GrammarCompiler]:
        compiler = GrammarCompiler(self.make_vocabulary, CompilerLimits(**{"seconds": 60} | limits), observer)
        try:
            yield compiler
        finally:
            compiler.close()

    @staticmethod
    def allowed(matcher: Any, position: int) -> list[int]:
        mask = matcher.allowed(position)
        assert mask is not None, matcher.failure
        return [token for token in range(SIZE) if mask[token >> 3] >> (token & 7) & 1]

    def draw(self, grammar: CompiledGrammar, seed: int, most: int = 400) -> str | None:
        """A whole answer at random; None when it does not end within so many tokens."""
        matcher, draws, answer = grammar.matcher(), random.Random(seed), b""
        for position in range(most):
            token = draws.choice(self.allowed(matcher, position))
            matcher.take(token)
            if token == END:
                return answer.decode()
            answer += self.tokens[token]
        return None


@pytest.fixture(scope="session")
def bench(files: ModelFiles) -> Bench:
    return Bench(files)
