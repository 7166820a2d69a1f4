"""The three kinds of LLaVA-Instruct, and their shares."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    CONVERSATION = "conversation"
    DETAIL = "detail"
    REASONING = "reasoning"


# LLaVA-Instruct-158K: 58 K, 23 K and 77 K.
SHARES = {Kind.CONVERSATION: 58, Kind.DETAIL: 23, Kind.REASONING: 77}


def counts_by_share(total: int, shares: dict[Kind, int] = SHARES) -> dict[Kind, int]:
    """`total` split by shares, by largest remainder, so that the parts add up to it."""
    whole = sum(shares.values())
    counts = {kind: total * share // whole for kind, share in shares.items()}
    by_remainder = sorted(shares, key=lambda kind: -(total * shares[kind] % whole))
    for kind in by_remainder[: total - sum(counts.values())]:
        counts[kind] += 1
    return counts


def greatest_total(items: int, shares: dict[Kind, int] = SHARES) -> int:
    """The most answers for which no kind takes an item twice."""
    # A kind's count is less than one away from its exact share: three more than the exact total never fit.
    total = items * sum(shares.values()) // max(shares.values()) + 3
    while max(counts_by_share(total, shares).values()) > items:
        total -= 1
    return total
