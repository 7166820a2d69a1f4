"""Tokenizes text in which only the template's special tokens are special.

The text is tokenized once and whole, by the checkpoint's own tokenizer, in which special tokens are switched off; those
that the template wrote go under secret names that stand for them. So nobody's words become a special token, and
everything else is tokenized exactly as it would be by the tokenizer itself (a space put before the text, or before each
stretch between special tokens, included).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

_ANCHOR = "\ue000"  # joins with nothing: private use, so its bytes are in no merge
_PLAIN_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_PROBES = ("a", " a", "\n", ".", "1")


@dataclass(frozen=True)
class Encoded:
    """Tokens, and the character at which each begins."""

    ids: list[int]
    starts: list[int]


class TemplateTokenizer:
    """`structural` are ids that count as special whatever the tokenizer says, such as the image placeholder's."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, structural: Collection[int]) -> None:
        raw = json.loads(tokenizer.backend_tokenizer.to_str())
        raw |= {"post_processor": None, "truncation": None, "padding": None}
        added = raw["added_tokens"]
        for token_id in sorted(set(structural) - {token["id"] for token in added}):
            added.append({"id": token_id, "content": str(tokenizer.convert_ids_to_tokens(token_id)), **_PLAIN_FLAGS})
        special = [token for token in added if token["special"] or token["id"] in structural]
        for token in special:
            token["special"] = True
        self._backend = Tokenizer.from_str(json.dumps(raw))
        self._backend.encode_special_tokens = True  # as the library calls it: in text they are text
        nonce = secrets.token_hex(8)
        self.name_of = {
            token["content"]: f"\U000f0000{nonce}{place:x}\U000f0001" for place, token in enumerate(special)
        }
        self._backend.add_tokens(
            [
                AddedToken(
                    self.name_of[token["content"]],
                    normalized=False,
                    **{flag: token[flag] for flag in ("single_word", "lstrip", "rstrip")},
                )
                for token in special
            ]
        )
        self._id_of = {self._backend.token_to_id(self.name_of[token["content"]]): token["id"] for token in special}
        self._puts_space_first = any(self._encode(text).ids != self._anchored(text).ids for text in _PROBES)

    def encode(self, text: str, *, continues: bool = False) -> Encoded:
        """`continues`: the text goes on after other text, so that nothing is put before it."""
        return self._anchored(text) if continues and self._puts_space_first else self._encode(text)

    def _encode(self, text: str) -> Encoded:
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Encoded([self._id_of.get(i, i) for i in encoding.ids], [start for start, _ in encoding.offsets])

    def _anchored(self, text: str) -> Encoded:
        anchor, whole = self._encode(_ANCHOR).ids, self._encode(_ANCHOR + text)
        if whole.ids[: len(anchor)] != anchor:  # an anchor that the tokenizer cannot keep apart from what follows
            return self._encode(text)
        starts = [max(start - len(_ANCHOR), 0) for start in whole.starts[len(anchor) :]]
        return Encoded(whole.ids[len(anchor) :], starts)
