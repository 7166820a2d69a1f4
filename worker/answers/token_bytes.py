"""What each token id stands for in bytes, so that text can be put together exactly, one token at a time.

Reads how the checkpoint's own tokenizer decodes (Hugging Face `tokenizers`) and knows the two ways of this family:
byte-level BPE (GPT-2's printable alphabet for bytes: Qwen2, Llama 3, SmolLM2) and SentencePiece with byte fallback
(Llama 1 and 2, Vicuna, Mistral). It knows nothing of stop strings or of answers.
"""

from __future__ import annotations

import json
import re
from typing import Any

from model.errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"  # SentencePiece's visible space


class TokenBytes:
    """Token ids to bytes. Ids that the tokenizer does not know (a padded vocabulary) stand for nothing."""

    def __init__(self, tokenizer: Any) -> None:
        """Takes a fast transformers tokenizer. Raises CheckpointError when its decoder is of another kind."""
        self._backend = tokenizer.backend_tokenizer
        steps = _decoder_steps(self._backend)
        self._byte_level = "ByteLevel" in steps
        if not self._byte_level and not {"ByteFallback", "Metaspace"} & steps:
            raise CheckpointError(
                f"The tokenizer decodes by {', '.join(sorted(steps)) or 'nothing known'}; "
                "expected ByteLevel, ByteFallback or Metaspace."
            )
        self.drops_first_space = not self._byte_level and bool({"Strip", "Metaspace"} & steps)
        self.special_ids = frozenset(
            token_id for token_id, token in self._backend.get_added_tokens_decoder().items() if token.special
        )
        self._known: dict[int, bytes] = {}  # at most one entry per id of the vocabulary

    def __getitem__(self, token_id: int) -> bytes:
        data = self._known.get(token_id)
        if data is None:
            data = self._known[token_id] = self._read(token_id)
        return data

    def _read(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            try:
                return bytes(_BYTE_OF_CHARACTER[character] for character in token)
            except KeyError:  # an added token with characters outside the byte alphabet stands for itself
                return str(token).encode()
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return str(token).replace(_SPACE, " ").encode()


def _decoder_steps(backend: Any) -> set[str]:
    """The kinds of decoder in the tokenizer, sequences unfolded."""
    decoder = json.loads(backend.to_str()).get("decoder")
    pending, kinds = [decoder] if decoder else [], set()
    while pending:
        step = pending.pop()
        if step["type"] == "Sequence":
            pending.extend(step["decoders"])
        else:
            kinds.add(step["type"])
    return kinds


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's `bytes_to_unicode`, reversed: printable bytes stand for themselves, the others come from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()
