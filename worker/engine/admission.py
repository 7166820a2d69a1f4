"""Which requests the native engine can run at all. Everything is checked before a request joins others in a step."""

from __future__ import annotations

import math

from model.config import LlavaConfig
from worker.engine.protocol import EngineError, EngineRequest, SamplingParams


def check_request(request: EngineRequest, config: LlavaConfig, context_length: int, kv_tokens: int) -> None:
    """Raises EngineError, with the numbers, for what would fail or could never be scheduled."""
    vocabulary = config.text.vocab_size
    length = len(request.token_ids) + len(request.answer)
    if not request.token_ids:
        raise EngineError("the prompt is empty: it needs at least one token")
    _check_answer(request, config.image_token_id, vocabulary)
    if length + 1 > context_length:
        raise EngineError(
            f"the prompt has {length} tokens and the answer needs at least one, "
            f"but the context length is {context_length} tokens"
        )
    if length + 1 > kv_tokens:
        raise EngineError(
            f"the prompt has {length} tokens and the answer needs at least one, "
            f"but this worker's KV cache holds {kv_tokens} tokens"
        )
    low, high = min(request.token_ids), max(request.token_ids)
    if low < 0 or high >= vocabulary:
        raise EngineError(f"token id {low if low < 0 else high} lies outside the vocabulary of {vocabulary}")
    size = config.vision.image_size
    for number, image in enumerate(request.images, 1):
        expected = (image.layout.tiles, 3, size, size)
        if tuple(image.pixels.shape) != expected:
            raise EngineError(f"image {number} has pixels of shape {tuple(image.pixels.shape)}, expected {expected}")
    _check_sampling(request.sampling, vocabulary)


def _check_answer(request: EngineRequest, image_token_id: int, vocabulary: int) -> None:
    """What is there already of an answer that is carried on."""
    if not request.answer:
        return
    if len(request.answer) >= request.sampling.max_tokens:
        raise EngineError(
            f"the answer has {len(request.answer)} tokens already and may have {request.sampling.max_tokens}: "
            "nothing is left to carry on"
        )
    low, high = min(request.answer), max(request.answer)
    if low < 0 or high >= vocabulary:
        raise EngineError(f"answer token id {low if low < 0 else high} lies outside the vocabulary of {vocabulary}")
    ends = request.sampling.stop_token_ids
    for token in request.answer:
        if token == image_token_id or token in ends:
            raise EngineError(f"token id {token} cannot stand inside an answer")


def _check_sampling(params: SamplingParams, vocabulary: int) -> None:
    if params.max_tokens < 1:
        raise EngineError(f"max_tokens must be at least 1, got {params.max_tokens}")
    if not 0 <= params.seed < 2**64:
        raise EngineError(f"seed must be an unsigned 64-bit number, got {params.seed}")
    if not (0 <= params.temperature < math.inf):
        raise EngineError(f"temperature must be a number of at least 0, got {params.temperature}")
    if not (0 < params.repetition_penalty < math.inf):
        raise EngineError(f"repetition_penalty must be a number above 0, got {params.repetition_penalty}")
    for name in ("top_p", "min_p"):
        if not 0 <= getattr(params, name) <= 1:
            raise EngineError(f"{name} must lie between 0 and 1, got {getattr(params, name)}")
    for name in ("top_k", "min_tokens"):
        if getattr(params, name) < 0:
            raise EngineError(f"{name} must be at least 0, got {getattr(params, name)}")
    for name in ("frequency_penalty", "presence_penalty"):
        if not math.isfinite(getattr(params, name)):
            raise EngineError(f"{name} must be a finite number, got {getattr(params, name)}")
    if params.logprobs is not None and not 0 <= params.logprobs <= vocabulary:
        raise EngineError(f"logprobs must lie between 0 and the vocabulary of {vocabulary}, got {params.logprobs}")
    for name, tokens in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        for token in tokens:
            if not 0 <= token < vocabulary:
                raise EngineError(f"{name}: token id {token} lies outside the vocabulary of {vocabulary}")
    for token, bias in params.logit_bias.items():
        if not math.isfinite(bias):
            raise EngineError(f"logit_bias of token {token} must be a finite number, got {bias}")
