"""Rotary frequencies of every variant against transformers."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.config import LlavaConfig
from model.rope import inverse_frequencies

VARIANTS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}
VISION = {
    "model_type": "clip_vision_model",
    "image_size": 56,
    "patch_size": 14,
    "hidden_size": 32,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_frequencies_are_those_of_transformers(variant: str, spelling: str) -> None:
    text = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096}
    parameters = {**VARIANTS[variant], "rope_theta": 5000.0}
    written = (
        {"rope_theta": 5000.0, "rope_scaling": VARIANTS[variant]}
        if spelling == "rope_scaling"
        else {spelling: parameters}
    )
    config = LlavaConfig.from_hf(
        {
            "model_type": "llava",
            "image_token_index": 7,
            "vision_config": VISION,
            "text_config": {"model_type": "llama", **text, **written},
        }
    )
    ours, magnitude = inverse_frequencies(config.text.rope, config.text.head_dim)
    theirs, scale = ROPE_INIT_FUNCTIONS[variant](LlamaConfig(**text, rope_parameters=parameters), "cpu")
    assert torch.equal(ours, theirs) or (ours - theirs).abs().max() < 1e-9
    assert magnitude == pytest.approx(scale)
