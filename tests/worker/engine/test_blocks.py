import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.blocks import BlockAllocator, BlockTable


def test_a_block_has_one_holder_until_it_is_shared() -> None:
    allocator = BlockAllocator(4, 16)
    first, second = allocator.allocate(2), allocator.allocate(2)
    assert not set(first) & set(second)
    assert (allocator.free, allocator.used, allocator.usage) == (0, 4, 1.0)


def test_a_shared_block_is_free_only_after_its_last_holder_lets_go() -> None:
    allocator = BlockAllocator(2, 16)
    blocks = allocator.allocate(1)
    allocator.share(blocks)
    allocator.release(blocks)
    assert allocator.free == 1
    assert allocator.references(blocks[0]) == 1
    allocator.release(blocks)
    assert allocator.free == 2


def test_what_is_not_held_can_be_neither_shared_nor_released() -> None:
    allocator = BlockAllocator(2, 16)
    [block] = allocator.allocate(1)
    allocator.release([block])
    with pytest.raises(ValueError, match="twice"):
        allocator.release([block])
    with pytest.raises(ValueError, match="cannot be shared"):
        allocator.share([block])


def test_asking_for_more_than_is_free_takes_nothing() -> None:
    allocator = BlockAllocator(3, 16)
    allocator.allocate(2)
    with pytest.raises(ValueError, match="2 blocks asked for, 1 are free"):
        allocator.allocate(2)
    assert allocator.free == 1


def test_a_named_block_is_found_until_its_space_is_needed() -> None:
    allocator = BlockAllocator(3, 16)
    first, second = allocator.allocate(2)
    allocator.name(first, b"first")
    allocator.name(second, b"second")
    allocator.release([second])
    allocator.release([first])
    assert (allocator.free, allocator.named, allocator.idle([first, second])) == (3, 2, 2)
    assert allocator.find([b"first", b"other", b"second"]) == [first]
    allocator.share([first])
    assert (allocator.references(first), allocator.free) == (1, 2)
    allocator.allocate(1)
    assert allocator.find([b"second"]) == [second], "the block that holds nothing goes first"
    allocator.allocate(1)
    assert allocator.find([b"second"]) == []
    assert allocator.find([b"first"]) == [first]


def test_idle_blocks_are_given_away_in_the_order_in_which_they_were_let_go() -> None:
    allocator = BlockAllocator(3, 16)
    blocks = allocator.allocate(3)
    for block in blocks:
        allocator.name(block, bytes([block]))
    for place in (1, 0, 2):
        allocator.release([blocks[place]])
    assert [allocator.allocate(1)[0] for _ in blocks] == [blocks[1], blocks[0], blocks[2]]
    assert allocator.named == 0


def test_of_two_blocks_with_the_same_contents_the_first_is_found() -> None:
    allocator = BlockAllocator(2, 16)
    first, second = allocator.allocate(2)
    allocator.name(first, b"same")
    allocator.name(second, b"same")
    assert allocator.find([b"same"]) == [first]
    allocator.forget([first])
    assert allocator.find([b"same"]) == []
    allocator.release([first, second])
    assert allocator.allocate(2)


def test_a_free_block_cannot_be_named() -> None:
    with pytest.raises(ValueError, match="cannot be named"):
        BlockAllocator(2, 16).name(0, b"x")


@given(st.integers(1, 64), st.lists(st.integers(0, 200), max_size=20))
def test_a_table_holds_just_the_blocks_that_its_tokens_fill(block_size: int, lengths: list[int]) -> None:
    allocator = BlockAllocator(256, block_size)
    table = BlockTable(allocator)
    longest = 0
    for length in lengths:
        longest = max(longest, length)
        table.grow(length)
        assert table.missing(length) == 0
        assert (len(table.blocks) - 1) * block_size < max(longest, 1) <= max(len(table.blocks) * block_size, 1)
        assert allocator.used == len(table.blocks)
    table.clear()
    assert allocator.free == 256


@pytest.mark.parametrize(("total", "block_size"), [(0, 16), (4, 0)])
def test_a_cache_of_nothing_is_refused(total: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockAllocator(total, block_size)
