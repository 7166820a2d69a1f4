"""Inner loops whose order of sums is written out: LLVM's own vectors would choose another for another shape.

Both loops take several rows at once so that what is loaded serves them all. How many they are changes the speed and
nothing else: each sum is made by the same fused operations, in the same order, whatever is beside it.

Addresses are of float32 numbers, strides count numbers. The last index of every matrix is dense.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16  # partial sums of a dot product, on every machine: they are part of its result
_FEATURES = llvm.get_host_cpu_features()
# As many sums as the machine has registers for.
ROWS, COLUMNS = (6, 4) if _FEATURES.get("avx512f") else (3, 2)

_FLOAT, _INT = ir.FloatType(), ir.IntType(64)
_NUMBER = types.int64


def fuses() -> bool:
    """Whether this machine multiplies and adds in one operation; elsewhere each would be a call."""
    return bool(_FEATURES.get("fma") or _FEATURES.get("neon"))


def dots(rows: int, columns: int) -> Callable[..., None]:
    """`f(a, a_stride, b, b_stride, depth, c, c_stride)`: c [rows, columns] += a [rows, depth] times b [columns, depth],
    transposed. Each product has LANES partial sums, which are added pairwise; then comes what is left of the depth."""

    @intrinsic
    def multiply(
        typingctx: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, depth: Any, c: Any, c_stride: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            Writer(builder).dots(rows, columns, *arguments)
            return context.get_dummy_value()

        return types.void(*[_NUMBER] * 7), generate

    return multiply


def weigh(rows: int, vectors: int, lanes: int = LANES) -> Callable[..., None]:
    """`f(w, w_stride, v, v_stride, count, c, c_stride)`: c [rows, vectors * lanes] += w [rows, count] times
    v [count, vectors * lanes], one of the `count` after the other."""

    @intrinsic
    def mix(typingctx: Any, w: Any, w_stride: Any, v: Any, v_stride: Any, count: Any, c: Any, c_stride: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            Writer(builder).weigh(rows, vectors, lanes, *arguments)
            return context.get_dummy_value()

        return types.void(*[_NUMBER] * 7), generate

    return mix


class Writer:
    """Writes a loop where the builder stands. Nothing carries the flags by which LLVM may reorder sums."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def dots(self, rows: int, columns: int, a: Any, a_stride: Any, b: Any, b_stride: Any, depth: Any, *c: Any) -> None:
        build = self.builder
        places = [(row, column) for row in range(rows) for column in range(columns)]
        lefts = [self.row(a, a_stride, row) for row in range(rows)]
        rights = [self.row(b, b_stride, column) for column in range(columns)]
        whole = build.and_(depth, _INT(-LANES))

        def add(lanes: int) -> Callable[[Any, list[Any]], list[Any]]:
            def step(index: Any, sums: list[Any]) -> list[Any]:
                left = [self.load(pointer, index, lanes) for pointer in lefts]
                right = [self.load(pointer, index, lanes) for pointer in rights]
                return [
                    self.fuse(left[row], right[column], total, lanes)
                    for (row, column), total in zip(places, sums, strict=True)
                ]

            return step

        zeros = [ir.Constant(_vector(LANES), [_FLOAT(0.0)] * LANES)] * len(places)
        partial = self.loop(_INT(0), whole, LANES, zeros, add(LANES))
        sums = self.loop(whole, depth, 1, [self.total(sum_) for sum_ in partial], add(1))
        for (row, column), sum_ in zip(places, sums, strict=True):
            pointer = build.gep(self.row(c[0], c[1], row), [_INT(column)])
            build.store(build.fadd(build.load(pointer, align=4), sum_), pointer, align=4)

    def weigh(
        self, rows: int, vectors: int, lanes: int, w: Any, w_stride: Any, v: Any, v_stride: Any, count: Any, *c: Any
    ) -> None:
        build = self.builder
        places = [(row, vector) for row in range(rows) for vector in range(vectors)]
        weights = [self.row(w, w_stride, row) for row in range(rows)]
        targets = [self.row(c[0], c[1], row) for row in range(rows)]

        def add(index: Any, sums: list[Any]) -> list[Any]:
            values = self.row(v, v_stride, index)
            loaded = [self.load(values, _INT(vector * lanes), lanes) for vector in range(vectors)]
            factors = [self.spread(self.load(pointer, index, 1), lanes) for pointer in weights]
            return [
                self.fuse(factors[row], loaded[vector], total, lanes)
                for (row, vector), total in zip(places, sums, strict=True)
            ]

        begun = [self.load(targets[row], _INT(vector * lanes), lanes) for row, vector in places]
        for (row, vector), total in zip(places, self.loop(_INT(0), count, 1, begun, add), strict=True):
            pointer = build.gep(targets[row], [_INT(vector * lanes)])
            build.store(total, build.bitcast(pointer, total.type.as_pointer()), align=4)

    def loop(
        self, first: Any, last: Any, step: int, values: list[Any], body: Callable[[Any, list[Any]], list[Any]]
    ) -> list[Any]:
        """for index in range(first, last, step): values = body(index, values)"""
        build = self.builder
        before = build.block
        head, inside, after = (build.append_basic_block(name) for name in ("head", "inside", "after"))
        build.branch(head)
        build.position_at_end(head)
        index = build.phi(_INT)
        carried = [build.phi(value.type) for value in values]
        build.cbranch(build.icmp_signed("<", index, last), inside, after)
        build.position_at_end(inside)
        results = body(index, carried)
        following, end = build.add(index, _INT(step)), build.block
        build.branch(head)
        for phi, start, next_ in zip([index, *carried], [first, *values], [following, *results], strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(next_, end)
        build.position_at_end(after)
        return carried

    def row(self, place: Any, stride: Any, number: Any) -> Any:
        """A pointer to a row of a matrix: `place` is its address, or a pointer to it."""
        build = self.builder
        offset = build.mul(stride, number if isinstance(number, ir.Value) else _INT(number))
        return build.gep(build.inttoptr(place, _FLOAT.as_pointer()), [offset])

    def load(self, pointer: Any, index: Any, lanes: int) -> Any:
        build = self.builder
        return build.load(build.bitcast(build.gep(pointer, [index]), _vector(lanes).as_pointer()), align=4)

    def fuse(self, x: Any, y: Any, z: Any, lanes: int) -> Any:
        """x * y + z, rounded once."""
        kind = _vector(lanes)
        name = "llvm.fma.f32" if lanes == 1 else f"llvm.fma.v{lanes}f32"
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return self.builder.call(function, [x, y, z])

    def spread(self, value: Any, lanes: int) -> Any:
        if lanes == 1:
            return value
        build = self.builder
        single = build.insert_element(ir.Constant(_vector(lanes), ir.Undefined), value, ir.IntType(32)(0))
        return build.shuffle_vector(single, single, _order([0] * lanes))

    def total(self, vector: Any) -> Any:
        """The sum of the lanes: halves are added until one is left."""
        build, width = self.builder, vector.type.count
        while width > 1:
            width //= 2
            low = build.shuffle_vector(vector, vector, _order(range(width)))
            high = build.shuffle_vector(vector, vector, _order(range(width, 2 * width)))
            vector = build.fadd(low, high)
        return build.extract_element(vector, ir.IntType(32)(0))


def _vector(lanes: int) -> Any:
    return _FLOAT if lanes == 1 else ir.VectorType(_FLOAT, lanes)


def _order(places: Any) -> Any:
    numbers = list(places)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), [ir.IntType(32)(number) for number in numbers])
