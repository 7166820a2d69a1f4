"""What the patches drew from the CLS token, measured once, so that the demo's vision tower can do without it.

DINOv2's patches attend to a CLS token, which has no place in SigLIP's layout. In head h of a layer, a share a of a
patch's attention goes to CLS and the rest to the patches: the head's output is (1 - a) * o + a * v, with o the output
without CLS and v the value of CLS. Neither a nor v is constant, but their means do most of the work, and with constants
this is a scale and a shift of the head's output: both fold into the output projection.

How well: on 763 pictures that took no part in the measurement, at 112 pixels, patch features of layer 9 have a mean
cosine of .91 to those with CLS (.61 when CLS is merely dropped), and the nearest neighbour of the mean feature is of
the same category for .71 of the pictures (with CLS .71, dropped .64).

`deploy.demo.measure_cls` measured the means that lie in `cls_attention.safetensors` beside this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

STATISTICS = Path(__file__).parent / "cls_attention.safetensors"


@dataclass(frozen=True)
class ClsAttention:
    """Means over pictures and patches."""

    share: torch.Tensor  # [layers, heads]: of a patch's attention, what CLS takes
    value: torch.Tensor  # [layers, D]: that share times the value of CLS, heads side by side

    @classmethod
    def read(cls) -> ClsAttention:
        stored = load_file(STATISTICS)
        return cls(stored["share"], stored["value"])

    def fold(self, layer: int, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The output projection of `layer` (weight [D, D], bias [D]) with the mean of CLS's part in it."""
        kept = (1 - self.share[layer].double()).repeat_interleave(weight.shape[1] // self.share.shape[1])
        shift = weight.double() @ self.value[layer].double()
        return (weight.double() * kept).float(), (bias.double() + shift).float()
