"""Inner loops of attention over bfloat16 numbers two by two, for processors that multiply and add such pairs in one
operation (AVX-512 BF16): sums are float32.

Keys and values of TOKENS tokens are taken together, wherever each of them lies; a group's queries share what is loaded.
Addresses are of bytes, strides count numbers.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from model.cpu.kernels.lanes import LANES, Writer

TOKENS = 16  # taken together
WIDTH = 32  # numbers of a head that are taken together: heads must be as wide, or several times so

_FLOAT, _INT, _HALF, _WORD = ir.FloatType(), ir.IntType(64), ir.IntType(16), ir.IntType(32)
_NUMBER = types.int64
_SUMS, _WORDS, _HALVES = (ir.VectorType(kind, count) for kind, count in ((_FLOAT, 16), (_WORD, 16), (_HALF, 32)))


class _Bfloat(ir.types.Type):
    """A type that llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash(_Bfloat)


_PAIRS = ir.VectorType(_Bfloat(), 32)


def multiplies_pairs() -> bool:
    """Whether this machine has the operation."""
    return bool(llvm.get_host_cpu_features().get("avx512bf16"))


@intrinsic
def score_pairs(typingctx: Any, places: Any, queries: Any, width: Any, group: Any, scores: Any, stride: Any) -> Any:
    """scores float32 [group, TOKENS] = queries [group, width] times the keys at places, addresses int64 [TOKENS]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Pairs(builder).score(*arguments)
        return context.get_dummy_value()

    return types.void(*[_NUMBER] * 6), generate


@intrinsic
def mix_pairs(typingctx: Any, places: Any, weights: Any, stride: Any, width: Any, group: Any, mixed: Any) -> Any:
    """mixed float32 [group, width] += weights bfloat16 [group, TOKENS] times the values at places int64 [TOKENS]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Pairs(builder).mix(*arguments)
        return context.get_dummy_value()

    return types.void(*[_NUMBER] * 6), generate


class _Pairs(Writer):
    """Writes a loop where the builder stands."""

    def score(self, places: Any, queries: Any, width: Any, group: Any, scores: Any, stride: Any) -> None:
        zeros = ir.Constant(_SUMS, [_FLOAT(0.0)] * LANES)

        def panel(column: Any, _: list[Any]) -> list[Any]:
            begins = self.builder.icmp_signed("==", column, _INT(0))
            keys = self.transposed([self.part(places, token, column, _WORDS) for token in range(TOKENS)])

            def member(number: Any, _: list[Any]) -> list[Any]:
                query = self.half(queries, self.builder.add(self.builder.mul(number, width), column))
                target = self.sums(scores, self.builder.mul(number, stride))
                begun = self.builder.select(begins, zeros, self.builder.load(target, align=4))
                self.builder.store(self.dot(begun, query, keys), target, align=4)
                return []

            self.loop(_INT(0), group, 1, [], member)
            return []

        self.loop(_INT(0), width, WIDTH, [], panel)

    def mix(self, places: Any, weights: Any, stride: Any, width: Any, group: Any, mixed: Any) -> None:
        build = self.builder

        def panel(column: Any, _: list[Any]) -> list[Any]:
            low: list[Any] = []
            high: list[Any] = []
            for token in range(0, TOKENS, 2):
                both = [self.part(places, token + more, column, _HALVES) for more in (0, 1)]
                for pairs, first in ((low, 0), (high, LANES)):
                    order = [place + other for place in range(first, first + LANES) for other in (0, WIDTH)]
                    pairs.append(build.bitcast(build.shuffle_vector(*both, _mask(order)), _WORDS))

            def member(number: Any, _: list[Any]) -> list[Any]:
                weight = self.half(weights, build.mul(number, stride))
                for pairs, first in ((low, 0), (high, LANES)):
                    place = build.add(build.add(build.mul(number, width), column), _INT(first))
                    target = self.sums(mixed, place)
                    build.store(self.dot(build.load(target, align=4), weight, pairs), target, align=4)
                return []

            self.loop(_INT(0), group, 1, [], member)
            return []

        self.loop(_INT(0), width, WIDTH, [], panel)

    def dot(self, sums: Any, pairs: Any, columns: list[Any]) -> Any:
        """sums plus each pair at the pointer, by all lanes of its column."""
        build = self.builder
        kind = ir.FunctionType(_SUMS, [_SUMS, _PAIRS, _PAIRS])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        function = build.module.globals.get(name) or ir.Function(build.module, kind, name)
        for number, column in enumerate(columns):
            pair = build.load(build.gep(pairs, [_INT(number)]), align=4)
            single = build.insert_element(ir.Constant(_WORDS, ir.Undefined), pair, _WORD(0))
            spread = build.shuffle_vector(single, single, _mask([0] * LANES))
            sums = build.call(function, [sums, build.bitcast(spread, _PAIRS), build.bitcast(column, _PAIRS)])
        return sums

    def transposed(self, rows: list[Any]) -> list[Any]:
        """16 vectors of 16 words: in four rounds of swaps, of neighbours, of pairs of them, and so on."""
        build, distance = self.builder, 1
        while distance < LANES:
            after = list(rows)
            for first in (number for number in range(LANES) if not number & distance):
                upper, lower = rows[first], rows[first + distance]
                kept = [lane if not lane & distance else lane - distance + LANES for lane in range(LANES)]
                moved = [lane + distance if not lane & distance else lane + LANES for lane in range(LANES)]
                after[first] = build.shuffle_vector(upper, lower, _mask(kept))
                after[first + distance] = build.shuffle_vector(upper, lower, _mask(moved))
            rows, distance = after, 2 * distance
        return rows

    def part(self, places: Any, token: int, column: Any, kind: Any) -> Any:
        """Of the vector whose address stands in `places`, what begins at a column."""
        build = self.builder
        pointer = build.gep(build.inttoptr(places, _INT.as_pointer()), [_INT(token)])
        vector = build.inttoptr(build.load(pointer, align=8), _HALF.as_pointer())
        return build.load(build.bitcast(build.gep(vector, [column]), kind.as_pointer()), align=2)

    def half(self, place: Any, offset: Any) -> Any:
        """A pointer to pairs of bfloat16 numbers."""
        build = self.builder
        pointer = build.gep(build.inttoptr(place, _HALF.as_pointer()), [offset])
        return build.bitcast(pointer, _WORD.as_pointer())

    def sums(self, place: Any, offset: Any) -> Any:
        build = self.builder
        pointer = build.gep(build.inttoptr(place, _FLOAT.as_pointer()), [offset])
        return build.bitcast(pointer, _SUMS.as_pointer())


def _mask(places: list[int]) -> Any:
    return ir.Constant(ir.VectorType(_WORD, len(places)), [_WORD(place) for place in places])
