"""One decoder for the Llama, Mistral and Qwen2 families: RMSNorm, rotary positions, grouped-query attention, gated MLP.

It takes embeddings of flat tokens, [T, D], of any number of sequences, and knows nothing of batches, caches or images:
attention is handed in. Parameter names are those of Hugging Face's `language_model`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from model.activations import activation
from model.attention import Attention
from model.config import TextConfig
from model.rope import Rope, rotate


class RmsNorm(nn.Module):
    """Root mean square norm; the statistics are float32 whatever the weights are."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        wide, narrow = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, wide, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, narrow, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, narrow, bias=config.qkv_bias)
        self.o_proj = nn.Linear(wide, config.hidden_size, bias=config.output_bias)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attention: Attention,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        tokens = x.shape[0]
        q = rotate(self.q_proj(x).view(tokens, -1, self.head_dim), cos, sin)  # [T, heads, head_dim]
        k = rotate(self.k_proj(x).view(tokens, -1, self.head_dim), cos, sin)  # [T, kv_heads, head_dim]
        v = self.v_proj(x).view(tokens, -1, self.head_dim)
        mixed = attention(self.layer, q, k, v).reshape(tokens, -1)
        return self.o_proj(mixed if wanted is None else mixed[wanted])


class Mlp(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = activation(config.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.norm_eps)
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.norm_eps)
        self.mlp = Mlp(config)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attention: Attention,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[T, D] -> [T, D], or the `wanted` rows alone; all tokens' keys and values go to `attention` either way."""
        mixed = self.self_attn(self.input_layernorm(x), cos, sin, attention, wanted)
        x = (x if wanted is None else x[wanted]) + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.layers))
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.rope = Rope(config.rope, config.head_dim)


class LanguageModel(nn.Module):
    """Embeddings in, hidden states out; `logits` turns those hidden states that are wanted into scores."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tied_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.scorer: nn.Module | None = None  # stands in for the head, [N, D] -> [N, vocabulary]

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[T] -> [T, D]."""
        return self.model.embed_tokens(token_ids)

    def forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        attention: Attention,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """embeddings [T, D], positions [T] (each sequence counts from 0) -> normed hidden states [T, D].

        With `wanted` [N], only of those rows: [N, D]. Behind its keys and values the last layer then computes no other.
        """
        x = embeddings
        cos, sin = self.model.rope(positions, x.dtype)
        *layers, last = self.model.layers
        for layer in layers:
            x = layer(x, cos, sin, attention)
        return self.model.norm(last(x, cos, sin, attention, wanted))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, D] -> [N, vocabulary]."""
        if self.scorer is not None:
            return self.scorer(hidden)
        if self.config.tied_embeddings:
            return F.linear(hidden, self.model.embed_tokens.weight)
        return self.lm_head(hidden)
