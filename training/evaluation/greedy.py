"""Two models asked for the next token along the first one's own greedy answers.

Both see the same tokens: what the first says is laid before the second, which is asked anew at every step. The
questions of a row go side by side behind their picture. Knows nothing of numbers' precision, nor of files.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model.llava import LlavaModel
from training.data.batches import Example


@dataclass(frozen=True)
class GreedyCount:
    """Tokens that the first model said, and those that the second would have said too."""

    tokens: int
    agreed: int

    @property
    def share(self) -> float:
        return self.agreed / self.tokens


@torch.inference_mode()
def follow_greedy(
    first: LlavaModel, second: LlavaModel, example: Example, stop_token_ids: Collection[int], most: int
) -> GreedyCount:
    """Answers every question of the row, the first of its answers where they build on each other, by at most `most`
    tokens each."""
    asked = _prompt(example)
    ids, branches, positions = example.token_ids[asked], example.branches[asked], example.positions[asked]
    ends = [int((branches == branch).nonzero()[-1]) for branch in branches[branches > 0].unique().tolist() or [0]]
    wanted: torch.Tensor | None = torch.tensor(ends)
    images = [] if example.image is None else [example.image]
    inputs = [model.embed(ids, model.encode_images(images)) for model in (first, second)]
    memories = [_Memory(model.config.text.sliding_window) for model in (first, second)]
    branch, position = branches[ends], positions[ends]
    tokens = agreed = 0
    for _ in range(most):
        said = []
        for model, embedded, memory in zip((first, second), inputs, memories, strict=True):
            memory.expect(branches, positions)
            hidden = model.language_model(embedded, positions, memory, wanted)
            said.append(model.language_model.logits(hidden).argmax(dim=-1))
        tokens += len(said[0])
        agreed += int((said[0] == said[1]).sum())
        going = torch.tensor([token not in stop_token_ids for token in said[0].tolist()])
        if not going.any():
            break
        branch, position, wanted = branch[going], position[going] + 1, None
        branches, positions = branch, position
        inputs = [model.embed(said[0][going], []) for model in (first, second)]
    return GreedyCount(tokens, agreed)


def _prompt(example: Example) -> torch.Tensor:
    """[T] bool: what stands before the first answer of each branch."""
    asked = torch.zeros_like(example.supervised)
    for branch in example.branches.unique().tolist():
        places = (example.branches == branch).nonzero().flatten()
        answers = example.supervised[places].nonzero()
        asked[places[: int(answers[0]) if len(answers) else len(places)]] = True
    return asked


class _Memory:
    """An `Attention` that keeps keys and values: a token sees those before it of branch 0 and of its own branch."""

    def __init__(self, sliding_window: int | None) -> None:
        self._window = sliding_window
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of a layer, each [kv_heads, T, head_dim]
        self._branches = self._positions = torch.empty(0, dtype=torch.int64)
        self._visible = torch.empty(0, 0, dtype=torch.bool)

    def expect(self, branches: torch.Tensor, positions: torch.Tensor) -> None:
        """[T], [T]: of the tokens that the next call of every layer brings."""
        before = len(self._branches)
        self._branches = torch.cat([self._branches, branches])
        self._positions = torch.cat([self._positions, positions])
        distance = positions[:, None] - self._positions
        order = torch.arange(before, before + len(branches))[:, None] >= torch.arange(len(self._branches))
        own = (self._branches == 0) | (self._branches == branches[:, None])
        self._visible = own & order if self._window is None else own & order & (distance < self._window)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        queries, *new = (part.transpose(0, 1) for part in (q, k, v))
        if layer in self._kept:
            new = [torch.cat([old, part], dim=1) for old, part in zip(self._kept[layer], new, strict=True)]
        keys, values = self._kept[layer] = (new[0], new[1])
        groups = len(queries) // len(keys)
        keys, values = (part.repeat_interleave(groups, dim=0) for part in (keys, values))
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=self._visible).transpose(0, 1)
