"""KV blocks: who holds which, and what lies in them. Counts and lists only; the tensors are `paged_attention`'s.

A block holds the keys and values of `block_size` consecutive tokens. Blocks are counted by reference, so that several
sequences can hold the same full block. A full block may be given a name that says what it holds (`prefix`); when its
last holder lets go it stays as it is until the space is needed, and whoever knows the name can take it up again. Of
such idle blocks the ones let go longest ago are given away first, behind those that hold nothing of use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockAllocator:
    """Hands out the blocks 0 .. `total` - 1, each at most once at a time."""

    def __init__(self, total: int, block_size: int) -> None:
        if total < 1 or block_size < 1:
            raise ValueError(f"a KV cache needs at least one block of one token, got {total} of {block_size}")
        self.total = total
        self.block_size = block_size
        self._free = OrderedDict.fromkeys(range(total))  # in the order in which they are given away
        self._references = [0] * total
        self._names: list[bytes | None] = [None] * total
        self._named: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that can be had, idle ones included."""
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    @property
    def named(self) -> int:
        """Blocks whose contents can be found by name, held or idle."""
        return len(self._named)

    @property
    def usage(self) -> float:
        """0..1 of all blocks that somebody holds."""
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
        """`count` free blocks with one holder each; what lay in them is forgotten.

        Raises ValueError if there are not so many: ask `free` first.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} are free")
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._forget(block)
            self._references[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each block, idle ones included. Raises ValueError for a block that holds nothing."""
        for block in blocks:
            if not self._references[block]:
                if self._names[block] is None:
                    raise ValueError(f"block {block} is free and cannot be shared")
                del self._free[block]
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less for each block. Raises ValueError for a block that nobody holds."""
        for block in blocks:
            if not self._references[block]:
                raise ValueError(f"block {block} was released twice")
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None
                if self._names[block] is None:
                    self._free.move_to_end(block, last=False)

    def name(self, block: int, name: bytes) -> None:
        """Says what a held block's tokens are. Of two blocks with the same contents the first keeps the name."""
        if not self._references[block]:
            raise ValueError(f"block {block} is free and cannot be named")
        if name not in self._named and self._names[block] is None:
            self._names[block] = name
            self._named[name] = block

    def forget(self, blocks: Iterable[int]) -> None:
        """Takes the names off blocks whose contents are not to be found again."""
        for block in blocks:
            self._forget(block)

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The blocks that hold what the names say, up to the first name that is not known."""
        found = []
        for name in names:
            block = self._named.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of these blocks nobody holds: sharing them takes so many off `free`."""
        return sum(not self._references[block] for block in blocks)

    def faults(self) -> list[str]:
        """What does not agree within the books; empty unless there is an error in this file."""
        found = []
        for block, references in enumerate(self._references):
            if references < 0 or (references > 0) == (block in self._free):
                found.append(f"block {block} has {references} references and is {self._standing(block)}")
        if len(self._free) + self.used != self.total or any(not 0 <= block < self.total for block in self._free):
            found.append(f"{len(self._free)} blocks are free and {self.used} in use, of {self.total}")
        named = {block: name for block, name in enumerate(self._names) if name is not None}
        if {name: block for block, name in named.items()} != self._named or len(named) != len(self._named):
            found.append(f"{len(named)} blocks have names, {len(self._named)} names have blocks")
        return found

    def _standing(self, block: int) -> str:
        return "free" if block in self._free else "in use"

    def _forget(self, block: int) -> None:
        name = self._names[block]
        if name is not None:
            del self._named[name]
            self._names[block] = None


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

    def adopt(self, blocks: Sequence[int]) -> None:
        """Begins with blocks whose contents are there already."""
        self._allocator.share(blocks)
        self.blocks += blocks

    def clear(self) -> None:
        """Gives all blocks back; last tokens first, so that what begins a prompt stays longest."""
        self._allocator.release(reversed(self.blocks))
        self.blocks = []
