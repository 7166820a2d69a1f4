"""What `tephra bench router` read, as tables: medians over the rounds with the least and the most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.comparison import Spread
from benchmarks.results import Rows
from benchmarks.router_load import Sample

DIRECT = "direct"
_HEADER = ("", "p50, ms", "requests/s", "p50 to direct", "requests/s to direct", "processor, \u00b5s a request")


@dataclass(frozen=True)
class Reading:
    """One measurement."""

    run: int
    shape: str
    target: str
    sample: Sample
    processor: float  # seconds of the target's own processes, for a request

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def tables(readings: Sequence[Reading]) -> list[Rows]:
    """One for each shape, in the order of first appearance."""
    targets = list(dict.fromkeys(one.target for one in readings))
    return [
        Rows(shape, _HEADER, tuple(_row(target, [one for one in readings if one.shape == shape]) for target in targets))
        for shape in dict.fromkeys(one.shape for one in readings)
    ]


def _row(target: str, readings: Sequence[Reading]) -> tuple[str, ...]:
    """Ratios are taken within a run, and only where both were measured."""
    taken = [one for one in readings if one.target == target]
    if not taken:
        return (target, "failed", "", "", "", "")
    direct = {one.run: one.sample for one in readings if one.target == DIRECT}
    pairs = [(one.sample, direct[one.run]) for one in taken if one.run in direct]
    return (
        target,
        _spread([one.sample.p50 * 1000 for one in taken], "{:.2f}".format),
        _spread([one.sample.rate for one in taken], "{:.0f}".format),
        _spread([one.p50 / base.p50 for one, base in pairs], "{:.1f}".format),
        _spread([one.rate / base.rate for one, base in pairs], "{:.3f}".format),
        _spread([one.processor * 1e6 for one in taken], "{:.0f}".format),
    )


def _spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    spread = Spread.of(values)
    return "" if spread is None else spread.text(form)
