"""Whether requests are answered alike: answers token by token, and what tells two of them apart. Knows no server."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """One answer: its tokens as bytes, the logprob of each, and why it ended."""

    tokens: tuple[bytes, ...]
    logprobs: tuple[float, ...]
    finish: str

    def parts_from(self, other: Told) -> int | None:
        """The first place at which they differ; None: nowhere."""
        for place, (one, two) in enumerate(zip(self.tokens, other.tokens, strict=False)):
            if one != two:
                return place
        if len(self.tokens) != len(other.tokens) or self.finish != other.finish:
            return min(len(self.tokens), len(other.tokens))
        return None

    def drift(self, other: Told) -> float:
        """The largest difference between their logprobs, up to where they part."""
        parted = self.parts_from(other)
        pairs = list(zip(self.logprobs, other.logprobs, strict=False))[:parted]
        return max((abs(one - two) for one, two in pairs), default=0.0)


@dataclass(frozen=True)
class Reading:
    """The same requests under one condition, held against the answers that each was given alone."""

    precision: str
    condition: str
    answers: int
    tokens: int  # of the answers given alone
    differed: int
    greedy: int  # of the answers, those drawn greedily
    greedy_differed: int
    first_places: tuple[int, ...]  # of those that differed: where
    drift: float  # the largest difference of a logprob before that
    exact: int  # answers whose every logprob was the same number
    failures: int  # requests without an answer
    others: int  # other requests that were answered meanwhile
    preemptions: int
    cached_tokens: int

    @staticmethod
    def of(
        precision: str,
        condition: str,
        alone: Sequence[Told],
        found: Sequence[Told | None],
        *,
        others: int,
        preemptions: int,
        cached_tokens: int,
        greedy: Sequence[bool],
    ) -> Reading:
        pairs = [(one, two) for one, two in zip(alone, found, strict=True) if two is not None]
        sure = [flag for flag, two in zip(greedy, found, strict=True) if two is not None]
        places = [one.parts_from(two) for one, two in pairs]
        parted = tuple(place for place in places if place is not None)
        return Reading(
            precision=precision,
            condition=condition,
            answers=len(pairs),
            tokens=sum(len(one.tokens) for one, _ in pairs),
            differed=len(parted),
            greedy=sum(sure),
            greedy_differed=sum(place is not None for place, flag in zip(places, sure, strict=True) if flag),
            first_places=parted,
            drift=max((one.drift(two) for one, two in pairs), default=0.0),
            exact=sum(one == two for one, two in pairs),
            failures=len(alone) - len(pairs),
            others=others,
            preemptions=preemptions,
            cached_tokens=cached_tokens,
        )

    @property
    def median_place(self) -> float | None:
        return statistics.median(self.first_places) if self.first_places else None
