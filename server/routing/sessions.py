"""Sessions: requests that ask to stay together do, whatever the policy.

The session's digest names its worker by rendezvous hashing, so every controller sends it to the same one and nothing
needs to be stored. The session moves while its worker cannot take requests, and for one that would have to wait there
although the worker has far more than its share of the work.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.routing.affinity import within_share
from server.routing.base import Choice, Chosen, Work
from server.routing.rendezvous import preference

_FACTOR = 2.5  # times its share of the work, that a session's worker may have and still keep it waiting


def stay(candidates: Sequence[Chosen], work: Work) -> Choice[Chosen]:
    order = preference(work.session, candidates)
    home = order[0]
    if home.in_flight < home.slots:
        return Choice(home, "session")
    return Choice(within_share(order, work, _FACTOR), "session")
