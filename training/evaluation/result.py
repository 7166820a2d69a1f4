"""What an evaluation found: scores beside their baselines, as values, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from training.scenes.scene import Turn

_Z95 = 1.959964  # two-sided 95% quantile of the normal distribution


@dataclass(frozen=True)
class Tally:
    """Right answers among the answers that came; requests that failed are counted apart."""

    right: int
    answered: int
    failed: int = 0

    @property
    def rate(self) -> float:
        """Share of right answers, 0 when none came."""
        return self.right / self.answered if self.answered else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the rate (E. B. Wilson 1927, score interval)."""
        if not self.answered:
            return 0.0, 1.0
        n, p = self.answered, self.rate
        spread = _Z95 * math.sqrt(p * (1 - p) / n + _Z95**2 / (4 * n**2))
        centre, scale = p + _Z95**2 / (2 * n), 1 + _Z95**2 / n
        # At the ends of the scale the formula is exact but its arithmetic is not.
        low = 0.0 if self.right == 0 else (centre - spread) / scale
        high = 1.0 if self.right == n else (centre + spread) / scale
        return low, high


@dataclass(frozen=True)
class Mistake:
    """A wrong answer, kept so that a person can see what goes wrong."""

    question: str
    truth: str
    answer: str


@dataclass(frozen=True)
class FamilyResult:
    """One row of the table. `blind` is the same questions about an all-black picture; `majority` the best constant."""

    name: str
    title: str
    score: Tally
    blind: Tally
    majority: float
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class ChatSample:
    """A text-only prompt and its answer: to be read, not scored."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class DemoEvaluation:
    """The whole evaluation of one served model."""

    model: str
    seed: int
    samples_per_family: int
    families: tuple[FamilyResult, ...]
    chat: tuple[ChatSample, ...]
    seconds: float

    def family(self, name: str) -> FamilyResult:
        for family in self.families:
            if family.name == name:
                return family
        raise KeyError(f"no family {name!r} was evaluated")

    @property
    def failed_requests(self) -> int:
        return sum(family.score.failed + family.blind.failed for family in self.families)

    def table(self) -> Table:
        table = Table(title=f"{self.model}: held-out scenes and backgrounds, greedy answers")
        table.add_column("Question")
        for heading in ("Score", "95% interval", "Black picture", "Best constant", "Samples", "Failed"):
            table.add_column(heading, justify="right")
        for family in self.families:
            low, high = family.score.interval
            failed = family.score.failed + family.blind.failed
            table.add_row(
                family.title,
                f"{family.score.rate:.3f}",
                f"{low:.3f} - {high:.3f}",
                f"{family.blind.rate:.3f}",
                f"{family.majority:.3f}",
                str(family.score.answered),
                str(failed),
            )
        return table

    def to_json(self) -> str:
        data: dict[str, Any] = asdict(self)
        for row, family in zip(data["families"], self.families, strict=True):
            row["score"] |= {"rate": family.score.rate, "interval": family.score.interval}
            row["blind"] |= {"rate": family.blind.rate, "interval": family.blind.interval}
        return json.dumps(data, indent=2, ensure_ascii=False)


def majority(turns: Sequence[Turn]) -> float:
    """The score of the best answer that never looks at the picture: one constant for each form of question."""
    if not turns:
        return 0.0
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for turn in turns:
        forms[turn.form][turn.choice or turn.truth] += 1
    return sum(choices.most_common(1)[0][1] for choices in forms.values()) / len(turns)
