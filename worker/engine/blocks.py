"""KV blocks: who holds which. Counts and lists only; the tensors behind them are `paged_attention`'s.

A block holds the keys and values of `block_size` consecutive tokens. Blocks are counted by reference, so that several
sequences can hold the same full block; a block returns to the free list when its last holder lets go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class BlockAllocator:
    """Hands out the blocks 0 .. `total` - 1, each at most once at a time."""

    def __init__(self, total: int, block_size: int) -> None:
        if total < 1 or block_size < 1:
            raise ValueError(f"a KV cache needs at least one block of one token, got {total} of {block_size}")
        self.total = total
        self.block_size = block_size
        self._free = deque(range(total))
        self._references = [0] * total

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    @property
    def usage(self) -> float:
        """0..1 of all blocks."""
        return self.used / self.total

    @property
    def tokens(self) -> int:
        """Capacity in tokens."""
        return self.total * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.block_size)

    def references(self, block: int) -> int:
        return self._references[block]

    def allocate(self, count: int) -> list[int]:
        """`count` free blocks with one holder each. Raises ValueError if there are not so many: ask `free` first."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} are free")
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each block. Raises ValueError for a block that nobody holds."""
        for block in blocks:
            if not self._references[block]:
                raise ValueError(f"block {block} is free and cannot be shared")
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less for each block. Raises ValueError for a block that nobody holds."""
        for block in blocks:
            if not self._references[block]:
                raise ValueError(f"block {block} was released twice")
            self._references[block] -= 1
            if not self._references[block]:
                self._free.append(block)


class BlockTable:
    """The blocks of one sequence, in the order of its tokens."""

    def __init__(self, allocator: BlockAllocator) -> None:
        self._allocator = allocator
        self.blocks: list[int] = []

    def missing(self, tokens: int) -> int:
        """How many blocks are still needed to hold so many tokens."""
        return max(0, self._allocator.blocks_for(tokens) - len(self.blocks))

    def grow(self, tokens: int) -> None:
        """Takes the missing blocks. Raises ValueError if there are not enough."""
        self.blocks += self._allocator.allocate(self.missing(tokens))

    def clear(self) -> None:
        """Gives all blocks back; last tokens first, so that what begins a prompt stays longest."""
        self._allocator.release(reversed(self.blocks))
        self.blocks = []
