"""The checkpoint's tokens as llguidance sees them: their bytes, and how forced text is cut into them.

Bytes are those that answers are put together from, so what a grammar allows is what a client reads. Special tokens are
no text: a grammar that wants the text `<|im_end|>` gets it letter by letter, and never the token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from worker.answers.token_bytes import TokenBytes

_FORCED = 256  # characters of a forced text that are tokenized at once: the next token is asked for, not all of them


class GrammarVocabulary:
    """One checkpoint's vocabulary. Its tables take about a second for 150,000 tokens: make it off the event loop."""

    def __init__(
        self,
        tokens: TokenBytes,
        encode: Callable[[str], Collection[int]],
        *,
        size: int,
        end_token_ids: Collection[int],
        structural: Collection[int] = (),
    ) -> None:
        """`encode` tokenizes text that goes on after other text; `structural` ids count as special whatever the
        tokenizer says. Raises ValueError without an end token: no answer of a given form could end."""
        if not end_token_ids:
            raise ValueError("the checkpoint has no end token")
        self.size = size
        self.end_token_id = min(end_token_ids)
        self.end_token_ids = frozenset(end_token_ids)
        self._table = _Table(tokens, encode, size, self.end_token_id, {*structural, *end_token_ids})
        self.tokenizer = LLTokenizer(TokenizerWrapper(self._table), n_vocab=size, eos_token=sorted(end_token_ids))
        self._table.greedy = self.tokenizer.greedy_tokenize
        never = set(self._table.special_token_ids) - self.end_token_ids
        drawable = np.ones(size, bool)
        drawable[list(never)] = False
        self.drawable = np.packbits(drawable, bitorder="little")  # a grammar that names tokens by number gets no other


class _Table:
    """What `TokenizerWrapper` reads."""

    bos_token_id = None

    def __init__(
        self,
        tokens: TokenBytes,
        encode: Callable[[str], Collection[int]],
        size: int,
        end_token_id: int,
        structural: Collection[int],
    ) -> None:
        special = tokens.special_ids | set(structural)
        self.eos_token_id = end_token_id
        self.tokens = [tokens[token_id] for token_id in range(size)]
        self.special_token_ids = [
            token_id for token_id, data in enumerate(self.tokens) if not data or token_id in special
        ]
        self._encode = encode
        self.greedy: Callable[[str], list[int]] | None = None

    def __call__(self, text: Any) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("text only")  # which tells the wrapper what to send
        part = text[:_FORCED]
        ids = list(self._encode(part))
        if b"".join(self.tokens[token_id] for token_id in ids) == part.encode():
            return ids
        return self.greedy(part) if self.greedy else ids  # a tokenizer that puts something before every text
