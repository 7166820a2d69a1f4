"""The demo's vision tower: a DINOv2-small encoder out of an ONNX file, in the layout of SigLIP.

The two are the same pre-norm vision transformer but for three things, each settled here:
- LayerScale multiplies a branch's output by a learned vector: it is folded into the branch's last matrix and bias.
- The CLS token, an extra position that patches attend to, has no place in SigLIP's layout: it goes, and the mean of
  what patches drew from it is folded into the output projections (`cls_attention`).
- Positions were learned for 37 x 37 patches: they are interpolated (bicubic, as DINOv2 does itself) to the tile's grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from deploy.demo.cls_attention import ClsAttention

TILE = 112  # pixels a side
FEATURE_LAYER = -4  # as Hugging Face counts: the output of layer 9 of 12; the last ones only serve saliency
IMAGE_MEAN, IMAGE_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, which the encoder was trained with
_HEADS = 6  # stands in DINOv2-small's description, not in the weights

# Nodes of the graph whose constants have lost their names in the export.
_PATCH_POSITIONS = "/backbone/embeddings/Reshape_1"  # takes the patches' positions [1, 37 * 37, D]
_ALL_POSITIONS = "/backbone/embeddings/Concat_6"  # takes the position of CLS [1, 1, D], then the interpolated ones
_EPSILON = "/backbone/encoder/layer.0/norm1/Add"  # adds epsilon to the variance


@dataclass(frozen=True)
class Encoder:
    """The encoder as it was trained, LayerScale folded in, CLS still apart. Tensors are float32."""

    tensors: dict[str, torch.Tensor]  # named as within SigLIP's vision_model
    cls_token: torch.Tensor  # [D], its position added
    vision_config: dict[str, Any]


@dataclass(frozen=True)
class VisionTower:
    """What the assembly needs of the encoder."""

    tensors: dict[str, torch.Tensor]  # float32, named vision_tower.vision_model.*
    vision_config: dict[str, Any]


def read_vision_tower(data: bytes) -> VisionTower:
    """Reads the ONNX model in `data` and does away with its CLS token."""
    encoder, cls_attention = read_encoder(data), ClsAttention.read()
    tensors = dict(encoder.tensors)
    for layer in range(encoder.vision_config["num_hidden_layers"]):
        name = f"encoder.layers.{layer}.self_attn.out_proj"
        weight, bias = cls_attention.fold(layer, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, bias
    return VisionTower(
        {f"vision_tower.vision_model.{name}": values for name, values in tensors.items()}, encoder.vision_config
    )


def read_encoder(data: bytes) -> Encoder:
    """Reads the ONNX model in `data`."""
    graph = onnx.load_model_from_string(data).graph
    stored = {
        entry.name: torch.from_numpy(numpy_helper.to_array(entry).astype(np.float32)) for entry in graph.initializer
    }
    inputs = {node.name: list(node.input) for node in graph.node}
    constants = {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in graph.node if node.op_type == "Constant"
    }

    patches = stored["backbone.embeddings.patch_embeddings.projection.weight"]
    hidden, channels, patch, _ = patches.shape
    layers = sum(name.endswith("layer_scale1.lambda1") for name in stored)
    tensors = {
        "embeddings.patch_embedding.weight": patches,
        "embeddings.patch_embedding.bias": stored["backbone.embeddings.patch_embeddings.projection.bias"],
        "embeddings.position_embedding.weight": interpolate_positions(
            stored[inputs[_PATCH_POSITIONS][0]][0], TILE // patch
        ),
        "post_layernorm.weight": stored["backbone.layernorm.weight"],
        "post_layernorm.bias": stored["backbone.layernorm.bias"],
    }
    for layer in range(layers):
        theirs = f"backbone.encoder.layer.{layer}"

        def linear(module: str, theirs: str = theirs, layer: int = layer) -> tuple[torch.Tensor, torch.Tensor]:
            """Weight [out, in] and bias. The exporter put the transposed weight in a constant without a name."""
            constant = inputs[f"/backbone/encoder/layer.{layer}/{module}/MatMul"][1]
            return stored[constant].T.contiguous(), stored[f"{theirs}.{module.replace('/', '.')}.bias"]

        scale_attention, scale_mlp = (stored[f"{theirs}.layer_scale{n}.lambda1"] for n in (1, 2))
        for name, (weight, bias) in {
            "self_attn.q_proj": linear("attention/attention/query"),
            "self_attn.k_proj": linear("attention/attention/key"),
            "self_attn.v_proj": linear("attention/attention/value"),
            "self_attn.out_proj": fold_scale(*linear("attention/output/dense"), scale_attention),
            "layer_norm1": (stored[f"{theirs}.norm1.weight"], stored[f"{theirs}.norm1.bias"]),
            "layer_norm2": (stored[f"{theirs}.norm2.weight"], stored[f"{theirs}.norm2.bias"]),
            "mlp.fc1": linear("mlp/fc1"),
            "mlp.fc2": fold_scale(*linear("mlp/fc2"), scale_mlp),
        }.items():
            tensors[f"encoder.layers.{layer}.{name}.weight"] = weight
            tensors[f"encoder.layers.{layer}.{name}.bias"] = bias

    return Encoder(
        tensors=tensors,
        cls_token=(stored["backbone.embeddings.cls_token"] + stored[inputs[_ALL_POSITIONS][0]]).flatten(),
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": TILE,
            "patch_size": patch,
            "num_channels": channels,
            "hidden_size": hidden,
            "intermediate_size": len(tensors["encoder.layers.0.mlp.fc1.bias"]),
            "num_hidden_layers": layers,
            "num_attention_heads": _HEADS,
            "hidden_act": "gelu",
            "layer_norm_eps": float(f"{float(constants[inputs[_EPSILON][1]]):.3g}"),  # stored as float32
            "attention_dropout": 0.0,
            "vision_use_head": False,
        },
    )


def fold_scale(weight: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """scale * (W x + b) as one Linear."""
    return scale[:, None] * weight, scale * bias


def interpolate_positions(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Position embeddings [side * side, D] of a square grid, for a grid of `grid` x `grid` patches."""
    count, hidden = positions.shape
    side = round(count**0.5)
    square = positions.double().reshape(1, side, side, hidden).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(grid * grid, hidden).float()
