"""A loaded model in int8: weights once, activations token by token, products exact in int32.

Every matrix product of vision tower, connector, decoder and head is replaced; embeddings, the patch convolution and
attention stay bfloat16. Weights are scaled by output channel, activations by token, both symmetric and by their
largest value; in the decoder, channels are evened out first (`model.cpu.smoothing`). The head, where a small error
changes a word, takes each activation as two int8 numbers, which costs nothing where memory is what a product waits
for. Since products are exact, a token's result does not depend on what it is computed beside. CPU alone: on a GPU
other engines do better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from model.attention import Attention
from model.config import TextConfig, VisionConfig
from model.connector import Connector
from model.cpu.kernels import rows, team
from model.cpu.kernels.dense import attend_all, padded, side_by_side
from model.cpu.kernels.rows import Product, Quantized
from model.cpu.smoothing import LayerFactors, smoothing_factors
from model.errors import ModelError
from model.language_model import DecoderLayer
from model.llava import LlavaModel
from model.rope import HalfRope
from model.vision_tower import VisionLayer

_LIMIT = 127.0
_ROWS = 8  # that the packing is made for; other numbers are as quick with it
_ONE, _OFFSET = torch.tensor(1.0), torch.tensor(128)  # of activations; their scales are the rows'


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
    """Replaces a model's layers, one by one, so that no more than one is there twice. Raises ModelError."""
    check_int8(model.device, model.dtype)
    config = model.config
    factors = smoothing_factors(model)
    tower = model.vision_tower.vision_model.encoder.layers
    for index, layer in enumerate(tower):
        assert isinstance(layer, VisionLayer), "the model is in int8 already"
        tower[index] = Int8VisionLayer(layer, config.vision)
    connector = Int8Connector(model.multi_modal_projector, config.connector_activation)
    model.add_module("multi_modal_projector", connector)
    decoder = model.language_model.model
    for index, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer), "the model is in int8 already"
        decoder.layers[index] = Int8DecoderLayer(layer, config.text, factors[index])
    decoder.add_module("rope", HalfRope(decoder.rope))
    head = decoder.embed_tokens if config.text.tied_embeddings else model.language_model.lm_head
    model.language_model.scorer = Int8Head(Int8Linear([head.weight], [None]))
    if not config.text.tied_embeddings:
        del model.language_model.lm_head
    return model


class Int8Linear(nn.Module):
    """Linear layers over the same input, side by side. Takes quantised rows, gives a product to be scaled back."""

    columns: torch.Tensor  # float32 [N]
    zeros: torch.Tensor  # int64 [N]: weights are as far up as down
    bias: torch.Tensor | None  # float32 [N]

    def __init__(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> None:
        super().__init__()
        quantized = [quantize_weight(weight) for weight in weights]
        weight = torch.cat([values for values, _ in quantized])  # int8 [N, K]
        # An opaque tensor, no buffer: nothing but this product can be done with it.
        self.packed = (torch.ops.onednn.qlinear_prepack(weight, [_ROWS, weight.shape[1]]),)
        self.register_buffer("columns", torch.cat([scales for _, scales in quantized]))
        self.register_buffer("zeros", torch.zeros(len(weight), dtype=torch.int64))
        bias = None
        if any(part is not None for part in biases):
            parts = [torch.zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
            bias = torch.cat([part.float() for part in parts])
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, *layers: nn.Linear, factors: torch.Tensor | None = None) -> Int8Linear:
        """With `factors` [K], for inputs of which each channel is divided by its factor."""
        weights = [layer.weight if factors is None else layer.weight.float() * factors for layer in layers]
        return cls(weights, [layer.bias for layer in layers])

    def divide_outputs(self, first: int, factors: torch.Tensor) -> None:
        """Divides each output channel from `first` on by its factor."""
        self.columns[first:] /= factors
        if self.bias is not None:
            self.bias[first:] /= factors

    def forward(self, x: Quantized) -> Product:
        sums = torch.ops.onednn.qlinear_pointwise(
            x.values,
            _ONE,
            _OFFSET,
            self.packed[0],
            self.columns,
            self.zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return Product(sums, x.scales, self.bias)


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] -> int8 [N, K] and the float32 scale [N] of each row."""
    wide = weight.detach().float()
    scales = wide.abs().amax(dim=1) / _LIMIT
    values = (wide / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_().to(torch.int8)
    return values, scales


class Int8VisionLayer(nn.Module):
    """`model.vision_tower.VisionLayer`, in int8."""

    def __init__(self, layer: VisionLayer, config: VisionConfig) -> None:
        super().__init__()
        self.heads, self.activation = config.heads, config.activation
        attention, mlp = layer.self_attn, layer.mlp
        self.first, self.second = (
            _Norm(norm.weight, norm.bias, config.layer_norm_eps) for norm in (layer.layer_norm1, layer.layer_norm2)
        )
        self.qkv = Int8Linear.of(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.fc1, self.fc2 = Int8Linear.of(attention.out_proj), Int8Linear.of(mlp.fc1), Int8Linear.of(mlp.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, N, D]; x itself is overwritten."""
        batch, tokens, width = x.shape
        flat = x.reshape(batch * tokens, width)
        parts = rows.split(self.qkv(self.first(flat, None)), batch, self.heads, padded(tokens))
        mixed = side_by_side(attend_all(*parts, tokens), batch)
        hidden = self.fc1(self.second(flat, self.out(rows.quantize(mixed))))
        return rows.add(flat, self.fc2(rows.activate(hidden, self.activation, gated=False))).view(x.shape)


class Int8Connector(nn.Module):
    """`model.connector.Connector`, in int8."""

    def __init__(self, connector: Connector, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.first = Int8Linear.of(connector.linear_1)
        self.second = None if connector.kind == "linear" else Int8Linear.of(connector.linear_2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., vision width] -> [..., text width]."""
        product = self.first(rows.quantize(features.reshape(-1, features.shape[-1])))
        if self.second is not None:
            product = self.second(rows.activate(product, self.activation, gated=False))
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
        self.qkv = Int8Linear.of(attention.q_proj, attention.k_proj, attention.v_proj, factors=factors.qkv)
        self.out, self.down = Int8Linear.of(attention.o_proj), Int8Linear.of(mlp.down_proj, factors=factors.down)
        self.gate_up = Int8Linear.of(mlp.gate_proj, mlp.up_proj, factors=factors.gate_up)
        self.gate_up.divide_outputs(mlp.gate_proj.out_features, factors.down)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attention: Attention,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the layer it stands for; x itself is overwritten. cos and sin as `HalfRope` gives them."""
        q, k, v = rows.turn(self.qkv(self.first(x, None)), self.heads, self.kv_heads, self.head_dim, cos, sin)
        mixed = attention(self.layer, q, k, v).reshape(len(x), -1)
        if wanted is not None:
            x, mixed = x[wanted], mixed[wanted]
        hidden = self.gate_up(self.second(x, self.out(rows.quantize(mixed))))
        return rows.add(x, self.down(rows.activate(hidden, self.activation, gated=True)))


class Int8Head(nn.Module):
    """Hidden states to logits."""

    def __init__(self, linear: Int8Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """bfloat16 [N, D] -> float32 [N, vocabulary]."""
        first = rows.quantize(hidden.contiguous())
        near = (first.values.float() - float(_OFFSET)) * first.scales[:, None]
        rest = rows.quantize((hidden.float() - near).to(hidden.dtype))
        both = Quantized(torch.cat([first.values, rest.values]), torch.cat([first.scales, rest.scales]))
        logits = rows.scale_back_wide(self.linear(both))
        return logits[: len(hidden)].add_(logits[len(hidden) :])


class _Norm(nn.Module):
    """A layer norm or RMS norm of rows to which a product is added first; what comes out is quantised."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", weight.detach().float())
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: torch.Tensor, product: Product | None) -> Quantized:
        return rows.add_and_norm(x, product, self.weight, self.bias, self.eps)
