"""Affinity: requests about the same pictures, or with the same beginning, go where the caches know them.

Rendezvous hashing names each key's home without any record. Two things send a request elsewhere:

- Bounded load (Mirrokni, Thorup and Zadimoghaddam, 2018): a worker that has more than `factor` times its share of all
  outstanding work passes the request to the next in the key's order, so that a popular picture spreads over as many
  workers as it needs.
- Price: where waiting costs more seconds than the caches can save, the least outstanding worker gets it.

Requests without a key go to the least outstanding worker.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.routing.base import Choice, Chosen, Work, seconds_to_end
from server.routing.least_outstanding import LeastOutstanding
from server.routing.rendezvous import preference


class Affinity:
    def __init__(self, factor: float) -> None:
        """`factor`: at least 1; how much more than its share of the work a worker may have before it is passed over."""
        self._factor = factor
        self._least = LeastOutstanding()

    def choose(self, candidates: Sequence[Chosen], work: Work) -> Choice[Chosen]:
        if not work.affinity or not work.reusable_tokens:
            return self._least.choose(candidates, work)
        order = preference(work.affinity, candidates)
        chosen = within_share(order, work, self._factor)
        saved = chosen.costs.prompt * work.reusable_tokens
        soonest = min(candidates, key=lambda one: seconds_to_end(one, work))
        if seconds_to_end(chosen, work) - seconds_to_end(soonest, work) > saved:
            return Choice(soonest, "cheaper")
        return Choice(chosen, "home" if chosen is order[0] else "next")


def within_share(order: Sequence[Chosen], work: Work, factor: float) -> Chosen:
    """The first whose outstanding work is at most `factor` times its share of all, `work` included; shares go by
    weight. There is always one: somebody has no more than the mean."""
    weights = sum(one.weight for one in order)
    total = sum(one.queue_seconds for one in order) + _cost(order, work)
    within = (one for one in order if one.queue_seconds * weights <= factor * total * one.weight)
    return next(within, order[0])  # rounding may leave none


def _cost(order: Sequence[Chosen], work: Work) -> float:
    """Seconds of `work` at the fastest worker."""
    return min(one.costs.seconds(work.prompt_tokens, work.answer_tokens) for one in order)
