"""A run as one picture: how latencies are spread, and what happened when. Plain SVG, which every browser shows.

Above, for each latency the share of its values that are no longer (its distribution function, on a logarithmic axis).
Below, requests as bars from their start to their end, the wait for the first token paler, failures red.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import TypeVar

from benchmarks.measurement import Measurement, Outcome
from benchmarks.report import seconds_text

_WIDTH, _LEFT, _RIGHT = 900, 70, 30
_CURVES_TOP, _CURVES_HEIGHT = 60, 260
_BARS_TOP = 400
_BARS_HEIGHT = 320
_MOST_BARS = 160
_MOST_POINTS = 400
_COLOURS = ("#1b6ca8", "#c8553d", "#5b8e3e", "#7a5195")
T = TypeVar("T")
Points = Sequence[tuple[float, float]]  # (seconds, share), rising


def plot(measured: Measurement, title: str, *, streamed: bool) -> str:
    """The text of an SVG file."""
    curves = [(name, points) for name, points in _curves(measured, streamed) if points]
    body = "\n".join([*_distributions(curves), *_timeline(measured, streamed)])
    height = _BARS_TOP + _BARS_HEIGHT + 50
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="#333">\n<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="{_LEFT}" y="28" font-size="16" font-weight="bold">{escape(title)}</text>\n{body}\n</svg>\n'
    )


def _curves(measured: Measurement, streamed: bool) -> Iterator[tuple[str, Points]]:
    answered = measured.answered
    if streamed:
        yield "time to first token", _shares([o.first for o in answered if o.first is not None])
        yield "inter-token", measured.gaps.points()
        yield "time per output token", _shares([o.per_token for o in answered if o.per_token is not None])
    yield "end to end", _shares([o.e2e for o in answered])


def _shares(values: list[float]) -> Points:
    return [(value, number / len(values)) for number, value in enumerate(sorted(values), 1)]


def _distributions(curves: Sequence[tuple[str, Points]]) -> Iterator[str]:
    if not curves:
        yield f'<text x="{_LEFT}" y="{_CURVES_TOP + 30}">No request was answered.</text>'
        return
    values = [max(seconds, 1e-5) for _, points in curves for seconds, _ in points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    bottom = _CURVES_TOP + _CURVES_HEIGHT

    def x(seconds: float) -> float:
        return _LEFT + (math.log10(max(seconds, 1e-5)) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(share: float) -> float:
        return bottom - share * _CURVES_HEIGHT

    for share in (0, 0.25, 0.5, 0.75, 0.95, 1):
        yield _line(_LEFT, y(share), _WIDTH - _RIGHT, y(share))
        yield _text(_LEFT - 8, y(share) + 4, f"{share:.0%}", "end")
    for power in range(low, high + 1):
        yield _line(x(10.0**power), _CURVES_TOP, x(10.0**power), bottom)
        yield _text(x(10.0**power), bottom + 16, _tick(10.0**power), "middle")
    for number, (name, points) in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        path = [f"{x(points[0][0]):.1f},{bottom}"]
        shown = _evenly(points, _MOST_POINTS)
        path += [f"{x(seconds):.1f},{y(share):.1f}" for seconds, share in shown]
        yield f'<polyline points="{" ".join(path)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        across = _LEFT + number * 200
        yield f'<rect x="{across}" y="{bottom + 28}" width="14" height="4" fill="{colour}"/>'
        yield _text(across + 20, bottom + 34, name, "start")


def _timeline(measured: Measurement, streamed: bool) -> Iterator[str]:
    if not measured.outcomes:
        return
    outcomes = _evenly(sorted(measured.outcomes, key=lambda outcome: outcome.began), _MOST_BARS)
    end = max(max(outcome.ended for outcome in measured.outcomes), 1e-9)
    row = _BARS_HEIGHT / len(outcomes)
    thick = max(0.5, min(14.0, row * 0.8))
    bottom = _BARS_TOP + _BARS_HEIGHT
    some = "" if len(outcomes) == len(measured.outcomes) else f" ({len(outcomes)} of {len(measured.outcomes)})"
    waits = "pale: waiting for the first token; " if streamed else ""
    yield _text(_LEFT, _BARS_TOP - 10, f"requests{some}, by their start; {waits}red: failed; amber: refused", "start")
    for tick in range(6):
        across = _across(end * tick / 5, end)
        yield _line(across, _BARS_TOP, across, bottom)
        yield _text(across, bottom + 16, seconds_text(end * tick / 5), "middle")
    for number, outcome in enumerate(outcomes):
        yield from _bar(outcome, _BARS_TOP + number * row, thick, end, streamed)


def _bar(outcome: Outcome, top: float, thick: float, end: float, streamed: bool) -> Iterator[str]:
    began, ended = _across(outcome.began, end), _across(outcome.ended, end)
    if outcome.error is not None:
        yield _rect(began, top, ended, thick, "#e8a317" if outcome.refused else "#d62728")
        return
    first = _across(outcome.began + outcome.first, end) if streamed and outcome.first is not None else began
    yield _rect(began, top, first, thick, "#a9cbe3")
    yield _rect(first, top, ended, thick, "#1b6ca8")


def _across(seconds: float, end: float) -> float:
    return _LEFT + seconds / end * (_WIDTH - _LEFT - _RIGHT)


def _evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """At most `most` of them, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]


def _tick(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:g} µs"
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rect(left: float, top: float, right: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(0.5, right - left):.1f}" height="{height:.1f}" '
        f'fill="{colour}"/>'
    )
