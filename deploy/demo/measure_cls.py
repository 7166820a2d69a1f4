"""`python -m deploy.demo.measure_cls ONNX_FILE`: what patches draw from the CLS token, for `cls_attention`.

Measured on pictures composed of Open Clipart (public domain, Debian package openclipart-png).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from deploy.demo.cls_attention import STATISTICS, ClsAttention
from deploy.demo.vision_tower import IMAGE_MEAN, IMAGE_STD, TILE, read_encoder

_PICTURES = Path("/usr/share/openclipart/png")
_COUNT, _BATCH = 256, 16
_LARGEST = 60_000  # bytes of a file: leaves the posters out


def measure(
    tower: dict[str, torch.Tensor], cls_token: torch.Tensor, config: dict[str, int | float], pixels: torch.Tensor
) -> ClsAttention:
    """Runs the encoder with its CLS token over `pixels` [N, 3, S, S].

    `tower` holds the tensors of SigLIP's vision_model with nothing of CLS folded in; `cls_token` [D] has its position
    added.
    """
    heads, eps = int(config["num_attention_heads"]), float(config["layer_norm_eps"])
    layers, width = int(config["num_hidden_layers"]), int(config["hidden_size"])
    share, value = torch.zeros(layers, heads), torch.zeros(layers, width)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, tower[f"{name}.weight"], tower[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (width,), tower[f"{name}.weight"], tower[f"{name}.bias"], eps)

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [N, heads, T, D / heads]

    patch, patch_bias = tower["embeddings.patch_embedding.weight"], tower["embeddings.patch_embedding.bias"]
    for batch in pixels.split(_BATCH):
        patches = F.conv2d(batch, patch, patch_bias, stride=patch.shape[-1]).flatten(2).transpose(1, 2)
        patches = patches + tower["embeddings.position_embedding.weight"]
        x = torch.cat([cls_token.expand(len(patches), 1, -1), patches], dim=1)  # [N, T, D], CLS first
        for layer in range(layers):
            block = f"encoder.layers.{layer}"
            y = norm(f"{block}.layer_norm1", x)
            q, k, v = (split(linear(f"{block}.self_attn.{name}_proj", y)) for name in "qkv")
            attention = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)  # [N, heads, T, T]
            to_cls = attention[:, :, 1:, :1]  # from each patch
            share[layer] += to_cls.mean((2, 3)).sum(0)
            value[layer] += (to_cls * v[:, :, :1]).mean(2).flatten(1).sum(0)
            x = x + linear(f"{block}.self_attn.out_proj", (attention @ v).transpose(1, 2).flatten(2))
            x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.layer_norm2", x))))
    return ClsAttention(share / len(pixels), value / len(pixels))


def calibration_pictures(side: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """[N, 3, side, side]: one drawing each, on plain ground or on another drawing, at many sizes and places."""
    draw = random.Random(0)
    found = [file for file in sorted(_PICTURES.rglob("*.png")) if file.stat().st_size < _LARGEST]
    if len(found) < 2 * _COUNT:
        raise SystemExit(f"too few pictures in {_PICTURES}: install the Debian package openclipart-png")
    files = draw.sample(found, 2 * _COUNT)
    pictures = []
    for number, (front, back) in enumerate(zip(files[:_COUNT], files[_COUNT:], strict=True)):
        ground = Image.new("RGBA", (side, side), (*(draw.randrange(256) for _ in range(3)), 255))
        if number % 2:
            with Image.open(back) as drawing:
                ground.alpha_composite(drawing.convert("RGBA").resize((side, side)))
        with Image.open(front) as drawing:
            figure = drawing.convert("RGBA")
        figure.thumbnail((draw.randint(side // 3, side),) * 2)
        ground.alpha_composite(figure, (draw.randint(0, side - figure.width), draw.randint(0, side - figure.height)))
        pictures.append((np.asarray(ground.convert("RGB")) / 255 - mean) / std)
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2)).float()


def main() -> None:
    encoder = read_encoder(Path(sys.argv[1]).read_bytes())
    with torch.no_grad():
        found = measure(
            encoder.tensors, encoder.cls_token, encoder.vision_config, calibration_pictures(TILE, IMAGE_MEAN, IMAGE_STD)
        )
    save_file({"share": found.share, "value": found.value}, STATISTICS)
    print(f"wrote {STATISTICS}; mean share of each head by layer:\n{found.share.numpy().round(2)}")


if __name__ == "__main__":
    main()
