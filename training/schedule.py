"""The learning rate over a run: linear warm-up, then cosine to zero, as every LLaVA recipe has it."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, total: int, warmup: float) -> float:
    """The factor in 0..1 for `step` (from 0) of `total`; `warmup` is a share of the run."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
