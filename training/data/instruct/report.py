"""One static HTML page: how many answers, how long, at what cost, what was rejected and why, and samples to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from training.data.instruct.budget import Prices
from training.data.instruct.journal import Settings, Spent
from training.data.instruct.kinds import Kind
from training.data.instruct.plan import drawn
from training.data.instruct.run import Accepted, Rejected, Tally
from training.data.rows import PLACE

SAMPLES = 4  # of each kind
_BIN = 20  # words
_BINS = 16

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}
td,th{border-bottom:1px solid #d6dbe1;padding:.25rem .9rem .25rem 0}
th{text-align:left}td.n{text-align:right;font-variant-numeric:tabular-nums}h2{margin-top:2.2rem}
.bars{display:flex;align-items:flex-end;gap:3px;height:8rem}.bars div{flex:1;background:#3f6fb5;min-height:1px}
.axis{display:flex;gap:3px;font-size:11px;color:#5b6570}.axis span{flex:1;text-align:center}
article{border:1px solid #d6dbe1;border-radius:6px;padding:.6rem 1rem;margin:.8rem 0}
pre{white-space:pre-wrap;font:13px/1.45 ui-monospace,monospace;color:#5b6570}
.stop{background:#fdf1d8;padding:.6rem 1rem}
@media(prefers-color-scheme:dark){body{background:#14171a;color:#dfe4ea}td,th,article{border-color:#384049}
.stop{background:#4a3a14}.bars div{background:#6d9be0}}
"""


@dataclass
class KindReport:
    """Gathered while rows are written; memory does not grow with them."""

    rows: int = 0
    pairs: int = 0
    question_words: int = 0
    answer_words: int = 0
    lengths: Counter[int] = field(default_factory=Counter)  # words of an answer, by bins
    samples: list[tuple[int, dict[str, Any], Accepted]] = field(default_factory=list)

    def add(self, accepted: Accepted, row: dict[str, Any], seed: int) -> None:
        self.rows += 1
        for turn in row["conversations"]:
            words = len(turn["value"].replace(PLACE, "").split())
            if turn["from"] == "gpt":
                self.pairs += 1
                self.answer_words += words
                self.lengths[min(words // _BIN, _BINS - 1)] += 1
            else:
                self.question_words += words
        self.samples.append((drawn(seed, "sample", row["id"]), row, accepted))
        self.samples.sort(key=lambda sample: sample[0])
        del self.samples[SAMPLES:]


def page(
    settings: Settings,
    tallies: dict[Kind, Tally],
    kinds: dict[Kind, KindReport],
    spent: Spent,
    prices: Prices,
    *,
    seed: int,
    stopped: str | None,
    notes: Sequence[str],
) -> str:
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Instructions by {escape(settings.model)}</title><style>{_STYLE}</style>",
        f"<h1>{sum(report.rows for report in kinds.values()):,} rows by {escape(settings.model)}</h1>",
        f"<p>Seed {seed}, temperature {settings.temperature:g}, at most {settings.max_tokens} tokens an answer, "
        f"prompts {escape(settings.prompts)}.</p>",
    ]
    if stopped is not None:
        parts.append(f"<p class=stop>Not complete: {escape(stopped)}. The same command goes on from here.</p>")
    parts += (f"<p>{escape(note)}</p>" for note in notes)
    parts += ("<h2>Counts</h2>", _counts(tallies, kinds), "<h2>Cost</h2>", _cost(spent, prices, tallies))
    parts += ("<h2>Rejected</h2>", _rejected(tallies))
    for kind, report in kinds.items():
        parts += (f"<h2>{kind.capitalize()}</h2>", _lengths(report), *map(_sample, report.samples))
    return "\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def cell(value: object) -> str:
        if isinstance(value, int):
            return f"<td class=n>{value:,}</td>"
        return f"<td class=n>{value:,.2f}</td>" if isinstance(value, float) else f"<td>{escape(str(value))}</td>"

    lines = ("".join(map(cell, row)) for row in rows)
    return (
        f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</table>"
    )


def _counts(tallies: dict[Kind, Tally], kinds: dict[Kind, KindReport]) -> str:
    head = (
        "kind", "wanted", "rows", "asked", "repaired", "rejected", "unanswered", "pairs", "words a question",
        "words an answer",
    )  # fmt: skip
    rows = []
    for kind, tally in tallies.items():
        report = kinds[kind]
        pairs = max(1, report.pairs)
        numbers = (tally.target, report.rows, tally.taken, tally.repaired, len(tally.rejected), tally.unanswered)
        rows.append((kind, *numbers, report.pairs, report.question_words / pairs, report.answer_words / pairs))
    return _table(head, rows)


def _cost(spent: Spent, prices: Prices, tallies: dict[Kind, Tally]) -> str:
    rows_made = max(1, sum(tally.accepted for tally in tallies.values()))
    rows: list[Sequence[object]] = [
        ("answers", spent.answers),
        ("prompt tokens", spent.used.prompt),
        ("answer tokens", spent.used.completion),
        ("tokens a row", spent.used.total // rows_made),
        ("failed requests", spent.failed),
        ("requests that may have been charged without an answer", spent.unsure),
        ("tokens of these, at most", spent.unsure_tokens.total),
    ]
    if spent.estimated:
        rows.append(("answers whose endpoint gave no usage (tokens are upper bounds)", spent.estimated))
    if prices != Prices():
        rows += (
            ("cost", prices.cost(spent.used)),
            ("cost of a thousand rows", 1000 * prices.cost(spent.used) / rows_made),
            ("cost of what may have been charged besides, at most", prices.cost(spent.unsure_tokens)),
        )
    return _table(("", ""), rows)


def _rejected(tallies: dict[Kind, Tally]) -> str:
    rejected = [one for tally in tallies.values() for one in tally.rejected]
    if not rejected:
        return "<p>None.</p>"
    counts = Counter((one.task.kind, one.code) for one in rejected)
    first: dict[tuple[Kind, str], Rejected] = {}
    for one in rejected:
        first.setdefault((one.task.kind, one.code), one)
    rows = [(kind, code, count, first[kind, code].why) for (kind, code), count in counts.most_common()]
    return _table(("kind", "why", "tasks", "for example"), rows)


def _lengths(report: KindReport) -> str:
    if not report.rows:
        return "<p>No rows.</p>"
    most = max(report.lengths.values())
    counts = [report.lengths[at] for at in range(_BINS)]
    bars = "".join(
        f"<div style='height:{100 * count / most:.1f}%' title='{at * _BIN}+ words: {count}'></div>"
        for at, count in enumerate(counts)
    )
    axis = "".join(f"<span>{at * _BIN}{'+' if at == _BINS - 1 else ''}</span>" for at in range(_BINS))
    return f"<p>Words of an answer</p><div class=bars>{bars}</div><div class=axis>{axis}</div>"


def _sample(sample: tuple[int, dict[str, Any], Accepted]) -> str:
    _, row, accepted = sample
    turns = "".join(
        f"<p><b>{'Question' if turn['from'] == 'human' else 'Answer'}.</b> {escape(turn['value'])}</p>"
        for turn in row["conversations"]
    )
    context = escape(accepted.task.item.context(boxes=True))
    return f"<article><b>{escape(str(row['image']))}</b><pre>{context}</pre>{turns}</article>"
