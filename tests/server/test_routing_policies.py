"""What policies promise: balance within bounds, keys that stay when workers come and go, shares by weight."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.routing.affinity import Affinity
from server.routing.base import TYPICAL_COSTS, Policy, TokenCosts, Work
from server.routing.least_outstanding import LeastOutstanding
from server.routing.power_of_two import PowerOfTwo
from server.routing.rendezvous import preference
from server.routing.round_robin import RoundRobin
from server.routing.sessions import stay


@dataclass
class Worker:
    """A queue of seconds."""

    id: str
    queue_seconds: float = 0.0
    in_flight: int = 0
    slots: int = 8
    weight: float = 1.0
    costs: TokenCosts = TYPICAL_COSTS

    def take(self, work: Work) -> float:
        seconds = self.costs.seconds(work.prompt_tokens, work.answer_tokens)
        self.queue_seconds += seconds
        self.in_flight += 1
        return seconds


def fleet(count: int) -> list[Worker]:
    return [Worker(f"w{number}") for number in range(count)]


def key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def picture(number: int, tokens: int = 576) -> Work:
    return Work(tokens + 50, 64, affinity=key(number), reusable_tokens=tokens)


works = st.builds(Work, st.integers(1, 4000), st.integers(1, 1000))
policies = st.sampled_from([LeastOutstanding, PowerOfTwo, RoundRobin, lambda: Affinity(1.25)])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(1, 8), st.sampled_from([1.0, 1.25, 2.0]))
def test_affinity_never_gives_a_worker_more_than_its_bounded_share(keys: list[int], count: int, factor: float) -> None:
    workers, policy = fleet(count), Affinity(factor)
    for number in keys:
        work = picture(number)
        seconds = policy.choose(workers, work).worker.take(work)
        mean = sum(one.queue_seconds for one in workers) / count
        assert max(one.queue_seconds for one in workers) <= factor * mean + seconds + 1e-9


@given(st.integers(2, 12), st.integers(0, 10_000))
def test_when_a_worker_leaves_only_its_own_keys_move(count: int, number: int) -> None:
    workers = fleet(count)
    before = preference(key(number), workers)
    for gone in workers:
        rest = [one for one in workers if one is not gone]
        assert preference(key(number), rest) == [one for one in before if one is not gone]


def test_when_a_worker_joins_its_share_of_the_keys_moves_to_it_and_no_other() -> None:
    workers, joined = fleet(9), Worker("w-new")
    homes = {number: preference(key(number), workers)[0].id for number in range(5000)}
    moved = {
        number: after
        for number, home in homes.items()
        if (after := preference(key(number), [*workers, joined])[0].id) != home
    }
    assert set(moved.values()) == {"w-new"}
    assert 0.08 < len(moved) / len(homes) < 0.12  # a tenth
    assert max(Counter(homes.values()).values()) < 1.15 * 5000 / 9


@given(policies, st.lists(works, min_size=1, max_size=50), st.integers(1, 6), st.randoms(use_true_random=False))
def test_every_policy_chooses_among_the_candidates_whatever_their_load(
    make: type[Policy], asked: list[Work], count: int, random: Random
) -> None:
    workers, policy = fleet(count), make()
    for one in workers:
        one.queue_seconds = random.uniform(0, 100)
        one.weight = random.uniform(0.1, 1.0)
    for work in asked:
        among = random.sample(workers, random.randint(1, count))
        assert policy.choose(among, work).worker in among


def test_waiting_for_the_caches_is_given_up_when_it_costs_more_than_they_save() -> None:
    workers, policy = fleet(2), Affinity(1000.0)  # no bound worth the name
    work = picture(1)
    home = policy.choose(workers, work).worker
    saved = work.reusable_tokens * home.costs.prompt
    home.queue_seconds = 0.99 * saved
    assert policy.choose(workers, work).worker is home
    home.queue_seconds = 1.01 * saved
    choice = policy.choose(workers, work)
    assert (choice.worker is home, choice.reason) == (False, "cheaper")


def test_without_a_key_affinity_takes_the_least_outstanding() -> None:
    workers = fleet(3)
    workers[0].queue_seconds = workers[2].queue_seconds = 1.0
    choice = Affinity(1.25).choose(workers, Work(10, 10))
    assert (choice.worker.id, choice.reason) == ("w1", "least")


def test_round_robin_gives_equal_workers_equal_turns_and_others_by_weight() -> None:
    policy, workers = RoundRobin(), fleet(3)
    order = [policy.choose(workers, Work(1, 1)).worker.id for _ in range(6)]
    assert order == ["w0", "w1", "w2"] * 2
    workers[2].weight = 0.5
    turns = Counter(policy.choose(workers, Work(1, 1)).worker.id for _ in range(500))
    assert turns == {"w0": 200, "w1": 200, "w2": 100}


@pytest.mark.parametrize("policy", [LeastOutstanding(), Affinity(1.25)])
def test_a_worker_that_starts_slowly_gets_its_share_and_no_more(policy: Policy) -> None:
    workers = fleet(4)
    workers[0].weight = 0.25
    for _ in range(1300):
        policy.choose(workers, Work(100, 100)).worker.take(Work(100, 100))
    assert 90 <= workers[0].in_flight <= 110  # 0.25 of 3.25 weights


def test_power_of_two_keeps_the_longest_queue_near_the_mean() -> None:
    workers, policy = fleet(20), PowerOfTwo(Random(7))
    for _ in range(2000):
        policy.choose(workers, Work(100, 100)).worker.take(Work(100, 100))
    assert max(one.in_flight for one in workers) <= 105  # one choice gives about 125


@given(st.integers(0, 1000), st.integers(2, 8))
def test_a_session_moves_only_while_its_worker_is_full_and_far_beyond_its_share(number: int, count: int) -> None:
    workers = fleet(count)
    work = Work(100, 100, session=key(number))
    home = stay(workers, work).worker
    home.in_flight, home.queue_seconds = home.slots - 1, 1000.0
    assert stay(workers, work).worker is home
    home.in_flight = home.slots
    moved = stay(workers, work).worker
    assert (moved is home) == (count <= 2)  # 2.5 times the share of two is more than there is


@dataclass
class Outcome:
    hit_rate: float
    mean_wait: float  # seconds until the answer's end


def simulate(
    policy: Policy, *, rate: float, pictures: int, seed: int = 3, count: int = 4, requests: int = 3000
) -> Outcome:
    """Workers that work one request after another and remember the last hundred pictures; Zipf's law for who asks about
    what. A cached picture costs no prompt tokens, which the policy is not told."""
    random, workers = Random(seed), fleet(count)
    weights = list(accumulate(1 / (rank + 1) for rank in range(pictures)))
    known: dict[str, list[int]] = {one.id: [] for one in workers}
    free_at = {one.id: 0.0 for one in workers}
    now = waits = hits = 0.0
    for _ in range(requests):
        now += random.expovariate(rate)
        for one in workers:
            one.queue_seconds = max(0.0, free_at[one.id] - now)
        number = random.choices(range(pictures), cum_weights=weights)[0]
        work = picture(number)
        chosen = policy.choose(workers, work).worker
        cache = known[chosen.id]
        hit = number in cache
        hits += hit
        if hit:
            cache.remove(number)
        cache.append(number)
        del cache[:-100]
        prompt = work.prompt_tokens - (work.reusable_tokens if hit else 0)
        start = max(now, free_at[chosen.id])
        free_at[chosen.id] = start + chosen.costs.seconds(prompt, work.answer_tokens)
        waits += free_at[chosen.id] - now
    return Outcome(hits / requests, waits / requests)


@pytest.mark.parametrize("rate", [1.0, 3.0, 6.0])
def test_affinity_finds_more_in_the_caches_and_keeps_nobody_waiting_for_it(rate: float) -> None:
    affine = simulate(Affinity(1.25), rate=rate, pictures=300)
    least = simulate(LeastOutstanding(), rate=rate, pictures=300)
    assert affine.hit_rate > least.hit_rate + 0.05
    assert affine.mean_wait < 1.02 * least.mean_wait


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000))
def test_affinity_costs_little_where_no_picture_comes_twice(seed: int) -> None:
    affine = simulate(Affinity(1.25), rate=4.0, pictures=100_000, seed=seed, requests=600)
    least = simulate(LeastOutstanding(), rate=4.0, pictures=100_000, seed=seed, requests=600)
    assert affine.mean_wait < 1.5 * least.mean_wait
