"""A whole LLaVA: vision tower, connector and language model, and how image features take their place among tokens.

Knows nothing of files, prompts or caches. Parameter names are the Hugging Face layout that transformers 4, 5 and vLLM
all load (`model.checkpoint.names`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from model.config import LlavaConfig
from model.connector import Connector
from model.errors import ModelError
from model.geometry import ImageLayout
from model.images import PreparedImage
from model.language_model import LanguageModel
from model.vision_tower import VisionTower


class LlavaModel(nn.Module):
    """`image_newline` ends each row of an unpadded high-resolution view; only checkpoints that cut tiles have one."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config.vision, config.encoder_layers_used, drop_cls=config.drop_cls)
        self.multi_modal_projector = Connector(
            config.vision.hidden_size,
            config.text.hidden_size,
            kind=config.connector,
            activation_name=config.connector_activation,
            bias=config.connector_bias,
        )
        if config.has_newline:
            self.image_newline = nn.Parameter(torch.empty(config.text.hidden_size))
        self.language_model = LanguageModel(config.text)

    @property
    def device(self) -> torch.device:
        return self.language_model.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.model.embed_tokens.weight.dtype

    def encode_images(self, images: Sequence[PreparedImage]) -> list[torch.Tensor]:
        """One [layout.tokens, D] tensor per image; the tiles of all images go through the tower together."""
        if not images:
            return []
        features = self.encode_tiles(torch.cat([image.pixels for image in images]))  # [tiles, tokens, D]
        per_image = features.split([image.layout.tiles for image in images])
        return [self.merge_tiles(part, image.layout) for part, image in zip(per_image, images, strict=True)]

    def encode_tiles(self, pixels: torch.Tensor) -> torch.Tensor:
        """[tiles, 3, S, S] through vision tower and connector: [tiles, tokens, D]."""
        return self.multi_modal_projector(self.vision_tower(pixels.to(self.device)))

    def merge_tiles(self, features: torch.Tensor, layout: ImageLayout) -> torch.Tensor:
        """[tiles, tokens, D] -> [layout.tokens, D]: base view, then the unpadded rows, a newline behind each."""
        base = features[0]
        if layout.unpad is None:
            return torch.cat([base, self.image_newline.to(base.dtype)[None]]) if layout.newline else base
        grid, box = self.config.vision.grid, layout.unpad
        rows = features[1:].view(layout.tiles_down, layout.tiles_across, grid, grid, -1)
        rows = rows.permute(0, 2, 1, 3, 4).reshape(layout.tiles_down * grid, layout.tiles_across * grid, -1)
        kept = rows[box.top : box.bottom, box.left : box.right]  # [rows, columns, D]
        if layout.shrunk is not None:
            kept = F.interpolate(kept.permute(2, 0, 1)[None], layout.shrunk, mode="bilinear")[0].permute(1, 2, 0)
        newline = self.image_newline.to(kept.dtype).expand(kept.shape[0], 1, -1)
        return torch.cat([base, torch.cat([kept, newline], dim=1).flatten(0, 1)])

    def embed(self, token_ids: torch.Tensor, image_features: Sequence[torch.Tensor]) -> torch.Tensor:
        """[T] -> [T, D]: image token positions take the features in order. Raises ModelError if the counts differ."""
        embeddings = self.language_model.embed(token_ids)
        places = token_ids == self.config.image_token_id
        expected = int(places.sum())
        given = sum(part.shape[0] for part in image_features)
        if expected != given:
            raise ModelError(f"{expected} image tokens in the prompt, but {given} image features")
        if not given:
            return embeddings
        features = torch.cat(list(image_features)).to(embeddings.dtype)
        return embeddings.masked_scatter(places[:, None], features)
