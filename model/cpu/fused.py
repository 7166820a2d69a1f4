"""A loaded bfloat16 model, made quick for a CPU: weights packed for oneDNN, what lies between products one pass each.

Packed weights are read at twice the speed where a step has few rows, as in decoding; layers over the same input stand
side by side. The same arithmetic as the plain layers but for where it rounds: inside a pass numbers are float32.
"""

from __future__ import annotations

import torch
from torch import nn

from model.attention import Attention
from model.config import TextConfig, VisionConfig
from model.connector import Connector
from model.cpu.kernels import rows, team
from model.cpu.kernels.dense import attend_all, padded, side_by_side
from model.language_model import DecoderLayer
from model.llava import LlavaModel
from model.rope import HalfRope
from model.vision_tower import VisionLayer

_ROWS = 8  # that the packing is made for; other numbers are as quick with it


def can_fuse(device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether there are kernels for such a model."""
    # oneDNN refuses bfloat16 on processors that cannot compute in it, where torch has another way.
    packs = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.device(device).type == "cpu" and dtype == torch.bfloat16 and packs and team.available()


def fuse(model: LlavaModel) -> LlavaModel:
    """Replaces a model's layers, one by one, so that no more than one is there twice.

    A head that shares the embedding's weights becomes a second copy of them.
    """
    tower = model.vision_tower.vision_model.encoder.layers
    for index, layer in enumerate(tower):
        assert isinstance(layer, VisionLayer), "the model's layers were replaced already"
        tower[index] = FusedVisionLayer(layer, model.config.vision)
    decoder = model.language_model.model
    for index, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer), "the model's layers were replaced already"
        decoder.layers[index] = FusedDecoderLayer(layer, model.config.text)
    decoder.add_module("rope", HalfRope(decoder.rope))
    connector = FusedConnector(model.multi_modal_projector, model.config.connector_activation)
    model.add_module("multi_modal_projector", connector)
    tied = model.config.text.tied_embeddings
    model.language_model.scorer = PackedLinear.of_weight(
        decoder.embed_tokens.weight if tied else model.language_model.lm_head.weight
    )
    if not tied:
        del model.language_model.lm_head
    return model


class PackedLinear(nn.Module):
    """Linear layers over the same input, side by side, in the layout in which oneDNN reads weights."""

    bias: torch.Tensor | None  # [N]

    def __init__(self, *layers: nn.Linear) -> None:
        super().__init__()
        self._pack(torch.cat([layer.weight for layer in layers]))
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        self.register_buffer("bias", bias)

    @classmethod
    def of_weight(cls, weight: torch.Tensor) -> PackedLinear:
        """Of a weight [N, K] alone."""
        packed = cls.__new__(cls)
        nn.Module.__init__(packed)
        packed._pack(weight)
        packed.register_buffer("bias", None)
        return packed

    def _pack(self, weight: torch.Tensor) -> None:
        # An opaque tensor, no buffer: nothing but this product can be done with it.
        self.packed = (torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS),)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed[0], self.bias, "none", [], "")


class FusedConnector(nn.Module):
    """`model.connector.Connector`."""

    def __init__(self, connector: Connector, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.first = PackedLinear(connector.linear_1)
        self.second = None if connector.kind == "linear" else PackedLinear(connector.linear_2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., vision width] -> [..., text width]."""
        x = self.first(features.reshape(-1, features.shape[-1]))
        if self.second is not None:
            x = self.second(rows.activate_wide(x, self.activation, gated=False))
        return x.view(*features.shape[:-1], -1)


class FusedVisionLayer(nn.Module):
    """`model.vision_tower.VisionLayer`."""

    def __init__(self, layer: VisionLayer, config: VisionConfig) -> None:
        super().__init__()
        self.heads, self.activation = config.heads, config.activation
        self.first, self.second = layer.layer_norm1, layer.layer_norm2
        self.qkv = PackedLinear(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        self.out, self.fc1 = PackedLinear(layer.self_attn.out_proj), PackedLinear(layer.mlp.fc1)
        self.fc2 = PackedLinear(layer.mlp.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, N, D]."""
        batch, tokens, width = x.shape
        flat = x.reshape(batch * tokens, width)
        parts = rows.split_wide(self.qkv(self.first(flat)), batch, self.heads, padded(tokens))
        flat = flat + self.out(side_by_side(attend_all(*parts, tokens), batch))
        hidden = rows.activate_wide(self.fc1(self.second(flat)), self.activation, gated=False)
        return flat.add_(self.fc2(hidden)).view(x.shape)


class FusedDecoderLayer(nn.Module):
    """`model.language_model.DecoderLayer`."""

    def __init__(self, layer: DecoderLayer, config: TextConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.eps, self.activation = config.norm_eps, config.activation
        attention, mlp = layer.self_attn, layer.mlp
        self.layer = attention.layer
        self.register_buffer("first", layer.input_layernorm.weight.float())
        self.register_buffer("second", layer.post_attention_layernorm.weight.float())
        self.qkv = PackedLinear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = PackedLinear(mlp.gate_proj, mlp.up_proj)
        self.out, self.down = PackedLinear(attention.o_proj), PackedLinear(mlp.down_proj)

    first: torch.Tensor
    second: torch.Tensor

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attention: Attention,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the layer it stands for; x itself is overwritten. cos and sin as `model.rope.HalfRope` gives them."""
        qkv = self.qkv(rows.add_and_norm_wide(x, None, self.first, None, self.eps))
        q, k, v = rows.turn_wide(qkv, self.heads, self.kv_heads, self.head_dim, cos, sin)
        mixed = attention(self.layer, q, k, v).reshape(len(x), -1)
        if wanted is not None:
            x, mixed = x[wanted], mixed[wanted]
        x = x.add_(self.out(mixed))
        hidden = self.gate_up(rows.add_and_norm_wide(x, None, self.second, None, self.eps))
        return x.add_(self.down(rows.activate_wide(hidden, self.activation, gated=True)))
