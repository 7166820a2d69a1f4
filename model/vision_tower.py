"""CLIP and SigLIP vision transformers, up to the layer whose features the connector takes.

Layers behind that one are not built: they would be computed for nothing. Parameter names are those of Hugging Face's
`vision_model`, so that a checkpoint's tensors fit without renaming.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from model.activations import activation
from model.config import VisionConfig


class VisionEmbeddings(nn.Module):
    """Patches by a strided convolution, plus learned positions; CLIP puts a CLS token in front."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            3,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            bias=config.kind == "siglip",
        )
        tokens = config.grid * config.grid
        if config.has_cls_token:
            self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
            tokens += 1
        self.has_cls_token = config.has_cls_token
        self.position_embedding = nn.Embedding(tokens, config.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, grid*grid, D]
        if self.has_cls_token:
            cls = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
            patches = torch.cat([cls, patches], dim=1)
        return patches + self.position_embedding.weight


class VisionAttention(nn.Module):
    """Full self-attention over the patches of one tile."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape

        def split(y: torch.Tensor) -> torch.Tensor:  # [B, heads, N, D/heads]
            return y.view(batch, tokens, self.heads, -1).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x)))
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class VisionMlp(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = activation(config.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMlp(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionEncoder(nn.Module):
    def __init__(self, config: VisionConfig, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(layers))


class VisionModel(nn.Module):
    def __init__(self, config: VisionConfig, layers: int) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        if config.kind == "clip":
            self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # spelled so everywhere
        self.has_pre_norm = config.kind == "clip"
        self.encoder = VisionEncoder(config, layers)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(pixels)
        if self.has_pre_norm:
            x = self.pre_layrnorm(x)
        for layer in self.encoder.layers:
            x = layer(x)
        return x


class VisionTower(nn.Module):
    """Tiles in, patch features of the chosen layer out."""

    def __init__(self, config: VisionConfig, layers: int, *, drop_cls: bool) -> None:
        super().__init__()
        self.config = config
        self.drop_cls = drop_cls
        self.vision_model = VisionModel(config, layers)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[tiles, 3, S, S] -> [tiles, tokens, D]. "default" strategy drops the first token, whatever it is."""
        features = self.vision_model(pixels.to(self.dtype))
        return features[:, 1:] if self.drop_cls else features

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_model.embeddings.patch_embedding.weight.dtype
