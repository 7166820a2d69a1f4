"""What of a checkpoint transformers and vLLM cannot do, or do otherwise than the checkpoint says."""

from __future__ import annotations

from model.config import LlavaConfig

VLLM_MAX_TILES = 9  # vLLM takes anyres_max_9 whatever the configuration says


def refusals(config: LlavaConfig) -> list[str]:
    """Why neither has a class for it; empty when both have."""
    found = []
    if config.connector == "linear":
        found.append("transformers and vLLM have no linear connector")
    if config.image_mode == "hd":
        found.append("transformers and vLLM do not lay images out as LLaVA-1.5-HD does")
    elif config.kind != "llava" and config.image_mode != "anyres":
        found.append(f"transformers and vLLM lay images of {config.kind} out as tiles only, not as {config.image_mode}")
    if config.kind == "llava_next" and config.max_tiles is not None:
        found.append(f"transformers and vLLM know no anyres_max_{config.max_tiles} for llava_next")
    if config.kind == "llava_onevision" and config.max_tiles is None:
        found.append("transformers and vLLM read llava_onevision with a limit of tiles only")
    return found


def limits(config: LlavaConfig) -> list[str]:
    """What vLLM loads but computes otherwise for many images."""
    if config.kind == "llava_onevision" and config.max_tiles not in (None, VLLM_MAX_TILES):
        return [
            f"N of anyres_max_{config.max_tiles} is not supported by vLLM, which always takes {VLLM_MAX_TILES}: "
            "large images get other features there"
        ]
    return []


def differences(config: LlavaConfig) -> list[str]:
    """Where they do otherwise in rare cases."""
    found = []
    if config.image_mode == "anyres" and config.rounding == "truncate":
        found.append(
            "transformers and vLLM round differently when they unpad: a few image sizes get other token counts"
        )
    if config.kind == "llava_next" and config.several_images == "base":
        found.append(
            "transformers and vLLM lay out each of several images as tiles, this checkpoint takes one view of each"
        )
    if config.kind == "llava_onevision" and config.several_images == "tiles":
        found.append("transformers takes one view of each of several images, this checkpoint lays out tiles of each")
    return found
