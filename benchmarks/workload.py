"""What is asked: conversations over pictures, the same for the same seed, whoever answers.

Knows no server and no clock. Conversation `i` shows one picture (or none) and asks `turns` questions about it, each
with all that was said before.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.pictures import Format, Size

Images = Literal["distinct", "repeated", "none"]
WARM_UP = -(2**20)  # number of the first warm-up conversation: its pictures and words never come again

_TEXT = """
water light stone paper river market window garden letter bridge summer music corner engine bottle yellow quiet moving
wooden narrow distant bright heavy gentle broken hidden carries follows watches builds crosses opens holds between under
behind near along without before about several every another people children weather colour shape number side picture
table street animal flower mountain machine story morning evening circle pattern surface edge
"""
_WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class Workload:
    """One kind of traffic."""

    images: Images = "distinct"
    pool: int = 1  # pictures that take turns where they are repeated
    sizes: tuple[Size, ...] = (Size(336, 336),)
    picture_format: Format = "jpeg"
    turns: int = 1
    prompt_words: int = 24
    max_tokens: int = 64
    ignore_eos: bool = True
    stream: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError."""
        for name in ("pool", "turns", "prompt_words", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not self.sizes:
            raise ValueError("sizes: expected at least one size")

    def picture_number(self, conversation: int) -> int | None:
        """Which picture a conversation is about."""
        if self.images == "none":
            return None
        if self.images == "distinct" or conversation < 0:
            return conversation
        return conversation % self.pool

    def pictures(self, conversations: int) -> range:
        """The pictures of the first `conversations`."""
        if self.images == "none":
            return range(0)
        return range(conversations if self.images == "distinct" else min(conversations, self.pool))

    def question(self, conversation: int, turn: int) -> str:
        """`prompt_words` words that no other question begins with."""
        draw = random.Random(f"{self.seed} {conversation} {turn}")
        return " ".join(draw.choice(_WORDS) for _ in range(self.prompt_words)) + "?"

    def messages(self, conversation: int, answers: Sequence[str], picture: str | None) -> list[dict[str, Any]]:
        """OpenAI's messages for the turn after `answers`; `picture` is a data URL."""
        messages: list[dict[str, Any]] = []
        for turn in range(len(answers) + 1):
            text = self.question(conversation, turn)
            if turn == 0 and picture is not None:
                parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
                messages.append({"role": "user", "content": parts})
            else:
                messages.append({"role": "user", "content": text})
            if turn < len(answers):
                messages.append({"role": "assistant", "content": answers[turn]})
        return messages
