"""What a check found, as one page that needs no network: counts, histograms, sources, and the first bad rows."""

from __future__ import annotations

from html import escape

from training.data.check.findings import Checked
from training.data.check.histogram import Histogram

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
section { display: inline-block; vertical-align: top; margin: 0 2rem 1rem 0; }
svg { display: block; } rect { fill: #4a7ebb; } rect.over { fill: #c0504d; }
text { fill: currentColor; font-size: 11px; }
.bad { color: #c0504d; } code { overflow-wrap: anywhere; }
"""
_WIDTH, _HEIGHT = 420, 130


def page(title: str, checked: Checked) -> str:
    """The page's HTML."""
    verdict = f'<p class="bad">{checked.bad:,} findings</p>' if checked.bad else "<p>Nothing is wrong.</p>"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{checked.rows:,} rows, {checked.images:,} images, {checked.answers:,} answers</p>",
        verdict,
        _table("Findings", [(kind, count) for kind, count in checked.kinds.most_common()]),
        _table("Sources", [(source, count) for source, count in checked.sources.most_common()]),
        _chart("Tokens a row", checked.tokens, checked.max_tokens),
        _chart("Characters a row", checked.characters),
        _chart("Questions a row", checked.questions),
        _chart("Image width", checked.widths),
        _chart("Image height", checked.heights),
        _examples(checked),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style>\n<body>\n{body}\n</body></html>\n"
    )


def _table(title: str, rows: list[tuple[str, int]]) -> str:
    if not rows:
        return ""
    cells = "".join(f'<tr><td>{escape(name)}</td><td class="n">{count:,}</td></tr>' for name, count in rows)
    return f"<section><h2>{title}</h2><table>{cells}</table></section>"


def _chart(title: str, histogram: Histogram, limit: int | None = None) -> str:
    """Bars of one histogram; those that lie wholly beyond `limit` are red."""
    bars = histogram.bars()
    if not bars:
        return ""
    tallest, wide = max(count for *_, count in bars), _WIDTH / len(bars)
    drawn = []
    for place, (start, below, count) in enumerate(bars):
        high = _HEIGHT * count / tallest
        over = ' class="over"' if limit is not None and start > limit else ""
        drawn.append(
            f'<rect{over} x="{place * wide:.1f}" y="{_HEIGHT - high:.1f}" width="{max(1, wide - 1):.1f}" '
            f'height="{high:.1f}"><title>{start:,} to {below - 1:,}: {count:,}</title></rect>'
        )
    ends = (
        f'<text x="0" y="{_HEIGHT + 14}">{histogram.least:,}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{histogram.most:,}</text>'
    )
    within = f", limit {limit:,}" if limit is not None else ""
    return (
        f"<section><h2>{title}</h2><p>mean {histogram.mean:,.1f}{within}</p>"
        f'<svg width="{_WIDTH}" height="{_HEIGHT + 18}" role="img" aria-label="{title}">{"".join(drawn)}{ends}</svg>'
        "</section>"
    )


def _examples(checked: Checked) -> str:
    if not checked.first:
        return ""
    items = "".join(
        f"<li><b>{escape(found.kind)}</b> <code>{escape(found.where)}</code>: {escape(found.reason)}</li>"
        for found in checked.first
    )
    return f"<h2>The first findings</h2><ol>{items}</ol>"
