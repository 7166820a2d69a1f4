"""How often int8 would say the next token that bfloat16 says: the gate before a checkpoint is served in int8.

Every answer of a data set is laid before both models, token by token as it is written, so that one differing token does
not make all that follow differ; then bfloat16's own answers to the same questions are. Data are rows in LLaVA's
conversation format: those of the task that the model is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from model.attention import SegmentAttention
from model.checkpoint import load_checkpoint
from model.cpu.int8 import to_int8
from model.llava import LlavaModel
from training.data.batches import Batch, ExampleSet, collate
from training.data.conversations import Conversation
from training.evaluation.greedy import GreedyCount, follow_greedy

_LONGEST_ANSWER = 64  # tokens of bfloat16's own


@dataclass(frozen=True)
class Agreement:
    """Over all tokens of the answers as they stand in the data. `divergence` is the mean Kullback-Leibler divergence
    from bfloat16, in nats; `losses` are the mean cross-entropies, bfloat16's and int8's. `greedy` counts along
    bfloat16's own answers."""

    tokens: int
    agreed: int
    divergence: float
    losses: tuple[float, float]
    greedy: GreedyCount

    @property
    def share(self) -> float:
        return self.agreed / self.tokens


@torch.inference_mode()
def measure_agreement(
    checkpoint: Path, rows: Sequence[Conversation], advance: Callable[[], None] = lambda: None
) -> Agreement:
    """Runs every row through both models, which are in memory together; `advance` is called after each.

    Raises CheckpointError, ModelError where int8 cannot be computed, DataError.
    """
    plain, quantized = (load_checkpoint(checkpoint, dtype=torch.bfloat16) for _ in range(2))
    to_int8(quantized.model)
    length = plain.config.text.context_length
    examples = ExampleSet(rows, plain.prompter, plain.preprocessor, view="full", max_length=length)
    stops = frozenset(plain.prompter.stop_token_ids)
    tokens = agreed = said = repeated = 0
    divergence = before = after = 0.0
    for index in range(len(examples)):
        example = examples[index]
        batch = collate([example])
        theirs, ours = (_logprobs(model, batch) for model in (plain.model, quantized.model))  # [N, vocabulary]
        tokens += len(batch.targets)
        agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        divergence += float(F.kl_div(ours, theirs, reduction="sum", log_target=True))
        before += float(F.nll_loss(theirs, batch.targets, reduction="sum"))
        after += float(F.nll_loss(ours, batch.targets, reduction="sum"))
        own = follow_greedy(plain.model, quantized.model, example, stops, _LONGEST_ANSWER)
        said, repeated = said + own.tokens, repeated + own.agreed
        advance()
    losses = (before / tokens, after / tokens)
    return Agreement(tokens, agreed, divergence / tokens, losses, GreedyCount(said, repeated))


def _logprobs(model: LlavaModel, batch: Batch) -> torch.Tensor:
    embeddings = model.embed(batch.token_ids, model.encode_images(batch.images))
    window = model.config.text.sliding_window
    attention = SegmentAttention(batch.lengths, branches=batch.branches, sliding_window=window)
    hidden = model.language_model(embeddings, batch.positions, attention, batch.predictors)
    return F.log_softmax(model.language_model.logits(hidden).float(), dim=-1)
