"""The policies by the names that --routing takes."""

from __future__ import annotations

from collections.abc import Callable

from server.routing.affinity import Affinity
from server.routing.base import Policy
from server.routing.least_outstanding import LeastOutstanding
from server.routing.power_of_two import PowerOfTwo
from server.routing.round_robin import RoundRobin
from server.settings import ROUTING_POLICIES, Settings

_MAKE: dict[str, Callable[[Settings], Policy]] = {
    "affinity": lambda settings: Affinity(settings.affinity_load_factor),
    "least-outstanding": lambda settings: LeastOutstanding(),
    "power-of-two": lambda settings: PowerOfTwo(),
    "round-robin": lambda settings: RoundRobin(),
}
assert tuple(_MAKE) == ROUTING_POLICIES


def make_policy(settings: Settings) -> Policy:
    return _MAKE[settings.routing](settings)
