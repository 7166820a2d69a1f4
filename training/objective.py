"""What training minimises: next-token cross-entropy over the supervised tokens of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import SegmentAttention
from model.llava import LlavaModel
from training.data.batches import Batch


class Objective(nn.Module):
    """The model as a loss. Logits are computed at supervised places only."""

    def __init__(self, model: LlavaModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        """The sum, not the mean, over `batch.targets`: callers divide by the count of the whole global batch."""
        features = self.model.encode_images(batch.images)
        embeddings = self.model.embed(batch.token_ids, features)
        window = self.model.config.text.sliding_window
        attention = SegmentAttention(
            batch.lengths, branches=batch.branches, sliding_window=window, device=embeddings.device
        )
        hidden = self.model.language_model(embeddings, batch.positions, attention)
        logits = self.model.language_model.logits(hidden[batch.predictors])  # [N, vocabulary]
        return F.cross_entropy(logits.float(), batch.targets, reduction="sum")
