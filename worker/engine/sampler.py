"""From logits to tokens, for a whole batch at once, on the model's device. Knows no sequences and no text.

Order: repetition penalty, frequency and presence penalties, bias, end tokens held back by min_tokens, what a constraint
does not allow; here logprobs are read; then temperature, top_k, top_p, min_p (Hugging Face's order), and the draw.

The draw is the inverse of the distribution's cumulative sum, in order of token ids, at `noise.uniform(seed, position)`.
Any fixed order gives each token exactly its probability, so nothing needs sorting for the draw itself; and in this
order two tokens that change ranks by a rounding error barely move any border. Sums are float64: over 150,000 tokens a
float32 sum would lose the unlikely ones. Each row is computed from itself alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worker.engine.noise import uniform
from worker.engine.protocol import Constraint, SamplingParams, TokenLogprobs

_LEADING = 256  # tokens ranked at first; the few rows that keep more are ranked whole


@dataclass(frozen=True)
class SampleRow:
    """What the next token of one answer depends on besides the logits."""

    params: SamplingParams
    prompt_vocabulary: np.ndarray  # distinct token ids of the prompt
    answer_counts: Mapping[int, int]  # token id -> times it was drawn
    position: int  # of the token to draw, in the answer
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Draw:
    token_id: int
    logprobs: TokenLogprobs | None


class Sampler:
    """`banned` token ids are never drawn: they mean something in a prompt and nothing in an answer."""

    def __init__(self, banned: Sequence[int] = ()) -> None:
        self._banned = list(banned)

    def sample(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[Draw | None]:
        """logits [N, vocabulary] -> one draw a row; None where the logits are not finite numbers."""
        scores = logits.to(torch.float32, copy=True)
        finite = scores.sum(dim=-1).isfinite().tolist()  # any NaN or infinity makes the sum one
        if not all(finite):
            scores[[index for index, good in enumerate(finite) if not good]] = 0.0
        scores[:, self._banned] = -torch.inf
        _penalise(scores, rows)
        _constrain(scores, rows)
        tokens = scores.argmax(dim=-1)
        drawn = [index for index, row in enumerate(rows) if row.params.temperature > 0]
        if drawn:
            tokens[drawn] = _draw(scores[drawn], [rows[index] for index in drawn])
        chosen = tokens.tolist()
        logprobs = _logprobs(scores, rows, chosen)
        for row, token, good in zip(rows, chosen, finite, strict=True):
            if good and row.constraint is not None:
                row.constraint.take(token)
        return [
            Draw(token, logprobs.get(index)) if good else None
            for index, (token, good) in enumerate(zip(chosen, finite, strict=True))
        ]


def _penalise(scores: torch.Tensor, rows: Sequence[SampleRow]) -> None:
    """Everything that shifts scores before the temperature, in place."""
    repeated, lowered = _Entries(), _Entries()
    shifted, banned = _Entries(), _Entries()
    for index, row in enumerate(rows):
        params = row.params
        answered = np.fromiter(row.answer_counts, np.int64, len(row.answer_counts))
        if params.repetition_penalty != 1.0:
            repeated.add(index, np.union1d(row.prompt_vocabulary, answered), params.repetition_penalty)
        if params.frequency_penalty or params.presence_penalty:
            counts = np.fromiter(row.answer_counts.values(), np.float64, len(row.answer_counts))
            lowered.add(index, answered, -params.frequency_penalty * counts - params.presence_penalty)
        if params.logit_bias:
            shifted.add(index, np.asarray(list(params.logit_bias), np.int64), list(params.logit_bias.values()))
        if row.position < params.min_tokens:
            banned.add(index, np.asarray(sorted(params.stop_token_ids), np.int64), -np.inf)
    if repeated:
        places, penalty = repeated.on(scores)
        before = scores[places]
        scores[places] = torch.where(before > 0, before / penalty, before * penalty)
    for entries in (lowered, shifted, banned):
        if entries:
            places, change = entries.on(scores)
            scores[places] += change


def _constrain(scores: torch.Tensor, rows: Sequence[SampleRow]) -> None:
    """Leaves each constrained row what its constraint allows, in place; a row that is left nothing, its end token.

    So an answer that must end does, before `min_tokens` too, and so does one that cannot go on.
    """
    constrained = [(index, row.constraint) for index, row in enumerate(rows) if row.constraint is not None]
    masks = [(index, constraint, constraint.allowed(rows[index].position)) for index, constraint in constrained]
    for index, constraint, mask in masks:
        if mask is None:
            _leave_only(scores, index, constraint.end_token_id)
    following = [(index, constraint, mask) for index, constraint, mask in masks if mask is not None]
    if not following:
        return
    banned = _banned([mask for _, _, mask in following], scores.shape[1], scores.device)
    for (index, _, _), tokens in zip(following, banned, strict=True):
        scores[index].masked_fill_(tokens, -torch.inf)  # a row at a time, in place: nothing of this size is copied
    best = torch.stack([scores[index].amax() for index, _, _ in following])
    for (index, constraint, mask), some in zip(following, best.isfinite().tolist(), strict=True):
        if not some:
            end = constraint.end_token_id
            if not mask[end >> 3] >> (end & 7) & 1:
                constraint.fail()
            _leave_only(scores, index, end)


def _banned(masks: Sequence[np.ndarray], vocabulary: int, device: torch.device) -> torch.Tensor:
    """Packed masks of what is allowed -> bool [M, vocabulary] of what is not. They go packed to an accelerator."""
    packed = ~np.stack(masks)
    if device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed, axis=1, count=vocabulary, bitorder="little").view(np.bool_))
    bits = torch.from_numpy(packed).to(device)[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=device)
    return (bits & 1).flatten(1)[:, :vocabulary].bool()


def _leave_only(scores: torch.Tensor, row: int, token_id: int) -> None:
    scores[row] = -torch.inf
    scores[row, token_id] = 0.0


class _Entries:
    """(row, token, value) triples, each place once, gathered for one indexed operation."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, row: int, tokens: np.ndarray, values: float | list[float] | np.ndarray) -> None:
        self._rows.append(np.full(len(tokens), row))
        self._tokens.append(tokens)
        self._values.append(np.broadcast_to(np.asarray(values, np.float32), len(tokens)))

    def on(self, scores: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """((rows, tokens), values) on the device of `scores`."""
        rows, tokens, values = (
            torch.from_numpy(np.concatenate(parts)).to(scores.device)
            for parts in (self._rows, self._tokens, self._values)
        )
        return (rows, tokens), values


def _draw(scores: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """scores [M, vocabulary] -> token ids [M]."""
    temperature = torch.tensor([row.params.temperature for row in rows], device=scores.device)[:, None]
    # The maximum goes first, so that no temperature is too small: the best token stays at 0, others fall.
    scaled = (scores - scores.amax(dim=-1, keepdim=True)) / temperature
    noise = torch.tensor([uniform(row.params.seed, row.position) for row in rows], dtype=torch.float64)
    noise = noise.to(scores.device)[:, None]
    tokens = torch.empty(len(rows), dtype=torch.int64, device=scores.device)
    truncated = [i for i, row in enumerate(rows) if row.params.top_k > 0 or row.params.top_p < 1.0]
    whole = sorted(set(range(len(rows))) - set(truncated))
    if whole:
        weights = _over_min_p(scaled[whole].double().exp_(), [rows[i] for i in whole])
        tokens[whole] = _inverse(weights, noise[whole])
    if truncated:
        ids, weights = _truncate(scaled[truncated], [rows[i] for i in truncated])
        weights = _over_min_p(weights, [rows[i] for i in truncated])
        tokens[truncated] = ids.gather(1, _inverse(weights, noise[truncated])[:, None]).squeeze(1)
    return tokens


def _inverse(weights: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """weights [M, W] of any sum, noise [M, 1] in [0, 1) -> the places [M] at which the cumulative sum passes it."""
    sums = weights.cumsum(dim=-1)
    total = sums[:, -1:]
    # noise * total may round up to the total, which no place passes.
    target = torch.minimum(noise * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(sums, target, right=True).squeeze(1)


def _over_min_p(weights: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """Drops weights below min_p times the largest, which is 1."""
    if not any(row.params.min_p > 0 for row in rows):
        return weights
    floor = torch.tensor([row.params.min_p for row in rows], dtype=torch.float64, device=weights.device)[:, None]
    return weights.masked_fill(weights < floor, 0.0)


def _truncate(scaled: torch.Tensor, rows: Sequence[SampleRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """top_k, then top_p of what is left: token ids [M, W] in rising order and their weights, 0 where cut off."""
    vocabulary = scaled.shape[1]
    total = torch.log_softmax(scaled, dim=-1).amax(dim=-1).double().neg().exp()  # of all weights: the largest is 1
    ids, weights, settled = _truncate_leading(scaled, total, rows, _LEADING)
    if settled.all():
        return ids, weights
    # A large top_k, or a flat distribution: what is kept reaches beyond the leading tokens.
    open_rows = (~settled).nonzero().squeeze(1)
    some = [rows[i] for i in open_rows.tolist()]
    all_ids = torch.arange(vocabulary, device=scaled.device).expand(len(rows), -1)
    all_weights = torch.zeros(len(rows), vocabulary, dtype=torch.float64, device=scaled.device)
    all_weights.scatter_add_(1, ids, weights)
    all_weights[open_rows] = _truncate_leading(scaled[open_rows], total[open_rows], some, vocabulary)[1]
    return all_ids, all_weights


def _truncate_leading(
    scaled: torch.Tensor, total: torch.Tensor, rows: Sequence[SampleRow], count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Truncates among the `count` leading tokens; and says for which rows that settles it."""
    vocabulary = scaled.shape[1]
    ids, values = _leading(scaled, count)
    ranked, order = values.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(ranked.shape[1], device=scaled.device)
    top_k = torch.tensor([row.params.top_k or vocabulary for row in rows], device=scaled.device)[:, None]
    top_p = torch.tensor([row.params.top_p for row in rows], dtype=torch.float64, device=scaled.device)
    weights = ranked.double().exp_().masked_fill_(ranks >= top_k, 0.0)
    sums = weights.cumsum(dim=-1)
    cut = top_k.squeeze(1) < vocabulary
    mass = torch.where(top_p < 1.0, top_p * torch.where(cut, sums[:, -1], total), torch.inf)
    settled = torch.where(cut, top_k.squeeze(1) <= count, sums[:, -1] >= mass) | (count >= vocabulary)
    behind = (sums - weights) >= mass[:, None]  # the tokens before it have the mass already
    behind[:, 0] = False
    weights.masked_fill_(behind, 0.0)
    return ids, torch.zeros_like(weights).scatter_(1, order, weights), settled


def _leading(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest scores of each row and all that equal the last of them; none that is -inf.

    Token ids [M, W] in rising order and their scores, -inf where a row has fewer than W. Ties are kept whole so that a
    stable sort of the result ranks by score, then by token id, whatever `count` was.
    """
    rows, vocabulary = scores.shape
    if count >= vocabulary:
        return torch.arange(vocabulary, device=scores.device).expand(rows, -1), scores
    threshold = scores.topk(count, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    row, token = ((scores >= threshold) & (scores > -torch.inf)).nonzero(as_tuple=True)
    found = torch.bincount(row, minlength=rows)
    place = torch.arange(len(row), device=scores.device) - (found.cumsum(0) - found)[row]
    width = int(found.max())
    ids = torch.zeros(rows, width, dtype=torch.int64, device=scores.device)
    values = torch.full((rows, width), -torch.inf, device=scores.device)
    ids[row, place] = token
    values[row, place] = scores[row, token]
    return ids, values


def _logprobs(scores: torch.Tensor, rows: Sequence[SampleRow], chosen: Sequence[int]) -> dict[int, TokenLogprobs]:
    """For the rows that ask: row -> the drawn token's logprob and the most likely ones."""
    wanted = {index: row.params.logprobs for index, row in enumerate(rows) if row.params.logprobs is not None}
    if not wanted:
        return {}
    logprobs = torch.log_softmax(scores[list(wanted)], dim=-1)
    own = logprobs.gather(1, torch.tensor([[chosen[index]] for index in wanted], device=scores.device)).squeeze(1)
    ids, values = _leading(logprobs, max(1, *wanted.values()))
    ranked, order = values.sort(dim=-1, descending=True, stable=True)
    most = max(wanted.values())
    tops = zip(ids.gather(1, order)[:, :most].tolist(), ranked[:, :most].tolist(), strict=True)
    return {
        index: TokenLogprobs(
            logprob, tuple(pair for pair in zip(tokens, likely, strict=True) if pair[1] > -np.inf)[:count]
        )
        for (index, count), logprob, (tokens, likely) in zip(wanted.items(), own.tolist(), tops, strict=True)
    }
