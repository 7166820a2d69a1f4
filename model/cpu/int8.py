"""A loaded model in int8: weights once, activations token by token, products exact in int32.

Every matrix product of vision tower, connector, decoder and head is replaced; embeddings, the patch convolution and
attention stay bfloat16. Weights are scaled by output channel, activations by token, both symmetric and by their
largest value. Channels are mixed first (`model.cpu.kernels.hadamard`), and before that the decoder's are evened out
(`model.cpu.smoothing`). The head, where a small error changes a word, takes each activation as two int8 numbers,
which costs nothing where memory is what a product waits for; where it shares the embedding's weights, it scores the
likeliest tokens again with those. Since products are exact, a token's result does not depend on what it is computed
beside. CPU alone: on a GPU other engines do better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from model.attention import Attention
from model.config import TextConfig, VisionConfig
from model.connector import Connector
from model.cpu.int8_linear import Int8Linear
from model.cpu.kernels import rows, team
from model.cpu.kernels.dense import attend_all, padded, side_by_side
from model.cpu.kernels.hadamard import parts_of
from model.cpu.kernels.rows import Product, Quantized
from model.cpu.smoothing import LayerFactors, smoothing_factors
from model.errors import ModelError
from model.language_model import DecoderLayer
from model.llava import LlavaModel
from model.rope import HalfRope
from model.vision_tower import VisionLayer

_OFFSET = 128.0  # of activations, which are kept without a sign
_LIKELIEST = 32  # tokens that a head scores again
_ROWS_AT_ONCE = 64  # of which it does so: so that little memory is taken


def check_int8(device: torch.device | str, dtype: torch.dtype) -> None:
    """Raises ModelError where int8 cannot be computed, with the reason."""
    if torch.device(device).type != "cpu":
        raise ModelError("int8 is computed on CPUs alone; on a GPU serve the weights as they are")
    if dtype != torch.bfloat16:
        raise ModelError(f"int8 goes with bfloat16 activations, not {str(dtype).removeprefix('torch.')}")
    if not torch.cpu._is_vnni_supported():  # elsewhere sums of two products overflow 16 bits
        raise ModelError("int8 needs a processor with AVX-512 VNNI; this one has none: serve the weights as they are")
    if not team.available():
        raise ModelError("int8 needs a torch with the GNU OpenMP runtime, as its Linux wheels have it")


def to_int8(model: LlavaModel) -> LlavaModel:
    """Replaces a bfloat16 model's layers. Raises ModelError."""
    check_int8(model.device, model.dtype)
    return pack(quantized(model, smoothing_factors(model)))


def quantized(model: LlavaModel, factors: Sequence[LayerFactors]) -> LlavaModel:
    """Replaces layers, one by one, so that no more than one is there twice. Nothing is packed: the model can be stored,
    and computed after `pack`. Of a model on the meta device, a frame of the same names and shapes."""
    config = model.config
    tower = model.vision_tower.vision_model.encoder.layers
    for index, layer in enumerate(tower):
        assert isinstance(layer, VisionLayer), "the model's layers were replaced already"
        tower[index] = Int8VisionLayer(layer, config.vision)
    connector = Int8Connector(model.multi_modal_projector, config.connector_activation)
    model.add_module("multi_modal_projector", connector)
    decoder = model.language_model.model
    for index, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer), "the model's layers were replaced already"
        decoder.layers[index] = Int8DecoderLayer(layer, config.text, factors[index])
    decoder.add_module("rope", HalfRope(decoder.rope))
    head = decoder.embed_tokens if config.text.tied_embeddings else model.language_model.lm_head
    model.language_model.scorer = Int8Head(head.weight, exact=config.text.tied_embeddings)
    if not config.text.tied_embeddings:
        del model.language_model.lm_head
    return model


def pack(model: LlavaModel) -> LlavaModel:
    """Makes a model of `quantized` ready to compute."""
    for part in model.modules():
        if isinstance(part, Int8Linear):
            part.pack()
    return model


class Int8VisionLayer(nn.Module):
    """`model.vision_tower.VisionLayer`, in int8."""

    def __init__(self, layer: VisionLayer, config: VisionConfig) -> None:
        super().__init__()
        self.heads, self.activation = config.heads, config.activation
        attention, mlp = layer.self_attn, layer.mlp
        self.first, self.second = (
            _Norm(norm.weight, norm.bias, config.layer_norm_eps) for norm in (layer.layer_norm1, layer.layer_norm2)
        )
        self.qkv = _mixed(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.fc1, self.fc2 = _mixed(attention.out_proj), _mixed(mlp.fc1), _mixed(mlp.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, N, D]; x itself is overwritten."""
        batch, tokens, width = x.shape
        flat = x.reshape(batch * tokens, width)
        product = self.qkv(self.first(flat, None, self.qkv.parts))
        attended = attend_all(*rows.split(product, batch, self.heads, padded(tokens)), tokens)
        mixed_in = self.out(rows.quantize(side_by_side(attended, batch), self.out.parts))
        hidden = self.fc1(self.second(flat, mixed_in, self.fc1.parts))
        gone_through = rows.activate(hidden, self.activation, gated=False, parts=self.fc2.parts)
        return rows.add(flat, self.fc2(gone_through)).view(x.shape)


class Int8Connector(nn.Module):
    """`model.connector.Connector`, in int8."""

    def __init__(self, connector: Connector, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.first = _mixed(connector.linear_1)
        self.second = None if connector.kind == "linear" else _mixed(connector.linear_2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., vision width] -> [..., text width]."""
        product = self.first(rows.quantize(features.reshape(-1, features.shape[-1]), self.first.parts))
        if self.second is not None:
            product = self.second(rows.activate(product, self.activation, gated=False, parts=self.second.parts))
        return rows.scale_back(product).view(*features.shape[:-1], -1)


class Int8DecoderLayer(nn.Module):
    """`model.language_model.DecoderLayer`, in int8."""

    def __init__(self, layer: DecoderLayer, config: TextConfig, factors: LayerFactors) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.activation = config.activation
        attention, mlp = layer.self_attn, layer.mlp
        self.layer = attention.layer
        norms = (layer.input_layernorm.weight.float(), layer.post_attention_layernorm.weight.float())
        self.first = _Norm(norms[0] / factors.qkv, None, config.norm_eps)
        self.second = _Norm(norms[1] / factors.gate_up, None, config.norm_eps)
        self.qkv = _mixed(attention.q_proj, attention.k_proj, attention.v_proj, factors=factors.qkv)
        self.qkv.divide_outputs((config.heads + config.kv_heads) * config.head_dim, factors.values)
        values = factors.values.view(config.kv_heads, 1, -1).expand(-1, config.heads // config.kv_heads, -1)
        self.out = _mixed(attention.o_proj, factors=values.flatten())
        self.gate_up = _mixed(mlp.gate_proj, mlp.up_proj, factors=factors.gate_up)
        self.gate_up.divide_outputs(mlp.gate_proj.out_features, factors.down)
        self.down = _mixed(mlp.down_proj, factors=factors.down)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attention: Attention,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the layer it stands for; x itself is overwritten. cos and sin as `HalfRope` gives them."""
        product = self.qkv(self.first(x, None, self.qkv.parts))
        q, k, v = rows.turn(product, self.heads, self.kv_heads, self.head_dim, cos, sin)
        mixed = attention(self.layer, q, k, v).reshape(len(x), -1)
        if wanted is not None:
            x, mixed = x[wanted], mixed[wanted]
        mixed_in = self.out(rows.quantize(mixed, self.out.parts))
        hidden = self.gate_up(self.second(x, mixed_in, self.gate_up.parts))
        return rows.add(x, self.down(rows.activate(hidden, self.activation, gated=True, parts=self.down.parts)))


def _mixed(*layers: nn.Linear, factors: torch.Tensor | None = None) -> Int8Linear:
    return Int8Linear.of(*layers, factors=factors, parts=parts_of(layers[0].in_features))


class Int8Head(nn.Module):
    """Hidden states to logits. With `exact`, weights that are in memory anyway, the likeliest tokens are scored again
    with those: between two that are nearly as likely int8 would decide by its rounding."""

    exact: torch.Tensor | None  # bfloat16 [vocabulary, D]

    def __init__(self, weight: torch.Tensor, *, exact: bool) -> None:
        """Of [vocabulary, D]."""
        super().__init__()
        self.linear = Int8Linear([weight], [None])
        self.register_buffer("exact", weight.detach() if exact else None, persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """bfloat16 [N, D] -> float32 [N, vocabulary]."""
        first = rows.quantize(hidden.contiguous())
        near = (first.values.float() - _OFFSET) * first.scales[:, None]
        rest = rows.quantize((hidden.float() - near).to(hidden.dtype))
        both = Quantized(torch.cat([first.values, rest.values]), torch.cat([first.scales, rest.scales]))
        logits = rows.scale_back_wide(self.linear(both))
        logits = logits[: len(hidden)].add_(logits[len(hidden) :])
        return logits if self.exact is None else self._score_again(logits, hidden, self.exact)

    def _score_again(self, logits: torch.Tensor, hidden: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        for some, row in zip(logits.split(_ROWS_AT_ONCE), hidden.float().split(_ROWS_AT_ONCE), strict=True):
            likeliest = some.topk(min(_LIKELIEST, some.shape[1]), sorted=False).indices  # [n, k]
            # Not a product: the order of its sums must not depend on how many rows there are.
            some.scatter_(1, likeliest, (exact[likeliest].float() * row[:, None]).sum(dim=-1))
        return logits


class _Norm(nn.Module):
    """A layer norm or RMS norm of rows to which a product is added first; what comes out is quantised."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", weight.detach().float())
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: torch.Tensor, product: Product | None, parts: int) -> Quantized:
        return rows.add_and_norm(x, product, self.weight, self.bias, self.eps, parts)
