"""The books of blocks and features: an error in them is found after the step that makes it, and ends the engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from worker.engine.accounts import AccountingError, Accounts
from worker.engine.blocks import BlockAllocator
from worker.engine.config import EngineConfig
from worker.engine.features import FeatureCache
from worker.engine.protocol import EngineFailure, EngineRequest, SamplingParams
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence

if TYPE_CHECKING:
    from tests.worker.engine.conftest import Tiny


@pytest.fixture
def house() -> Any:
    """One sequence that runs in three of eight blocks, and its accounts."""

    class House:
        allocator = BlockAllocator(8, 4)
        features = FeatureCache(64)
        scheduler = Scheduler(EngineConfig(max_step_tokens=32), allocator, features)
        accounts = Accounts(scheduler, allocator, features)
        request = EngineRequest("r", (1,) * 10, (), SamplingParams(max_tokens=9, seed=0))
        sequence = Sequence.of(
            request, number=0, context_length=32, image_token_id=9, allocator=allocator, weights="w", now=0.0
        )

    House.scheduler.add(House.sequence)
    [chunk] = House.scheduler.schedule().chunks
    House.scheduler.complete(chunk)
    House.accounts.check()
    return House


def lose(house: Any) -> None:
    house.sequence.table.blocks.pop()


def hold_twice(house: Any) -> None:
    house.allocator.share(house.sequence.table.blocks[:1])


def let_go(house: Any) -> None:
    house.allocator.release(house.sequence.table.blocks[-1:])


def put_among_waiting(house: Any) -> None:
    house.scheduler.waiting.append(house.scheduler.running.pop())


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lose, "3 blocks are in use, 2 stand in the tables"),
        (lose, "has 2 blocks for 10 computed tokens"),
        (hold_twice, "has 2 references and 1 holders"),
        (let_go, "2 blocks are in use, 3 stand in the tables"),
        (put_among_waiting, "sequence 0 is running and stands among the waiting"),
        (put_among_waiting, "sequence 0 is waiting and holds blocks"),
    ],
)
def test_what_is_wrong_is_told_with_the_numbers(house: Any, damage: Callable[[Any], None], told: str) -> None:
    damage(house)
    with pytest.raises(AccountingError, match=told):
        house.accounts.check()
    assert house.accounts.faults == 1


async def test_an_engine_that_checks_counts_every_step_and_finds_nothing(tiny: Tiny) -> None:
    async with tiny.engine(check_blocks=True) as engine:
        for _ in range(2):
            await tiny.answer(engine, tiny.request((5,) * 40, [tiny.picture(60, 60)], max_tokens=6))
        assert engine.load().block_checks >= 2 * 6 - 1
        assert engine.load().block_faults == 0
        assert engine.load().feature_images == 1
        assert engine.load().feature_bytes > 0


async def test_an_engine_whose_blocks_are_lost_ends_and_says_so(tiny: Tiny) -> None:
    async with tiny.engine(check_blocks=True) as engine:
        async with aclosing(engine.generate(tiny.request((5,) * 40, max_tokens=1500))) as outputs:
            await anext(outputs)
            engine._allocator.allocate(1)
            with pytest.raises(EngineFailure, match="has stopped after a failure"):
                async for _ in outputs:
                    pass
        assert not engine.healthy
        assert engine.load().block_faults == 1
