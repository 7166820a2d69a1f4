"""Our engine and vLLM say the same about the same pictures, token by token, on the same checkpoint."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tokenizers import Tokenizer

from deploy.demo.assemble import demo_checkpoint
from model.checkpoint.export import export_for_transformers
from model.generations import GENERATIONS
from model.tiny import make_tiny_checkpoint
from training.scenes import MIXES, Composer, drawn_catalogue
from training.scenes.scene import Layout

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

Both = Callable[[Path, Path], AbstractContextManager[tuple[str, str]]]

TIE = 0.02  # nats: below it, two ways to add the same numbers may order two tokens differently
LAYOUTS = (Layout.SHAPES, Layout.SINGLE, Layout.COUNTING, Layout.READING, Layout.SMALL_PRINT)


def pictures(cache: Path) -> list[tuple[Image.Image, str]]:
    """Ten pictures of different sizes, each with a question."""
    composer = Composer(drawn_catalogue(), "test", 0, MIXES["instruct"], cache_dir=cache)
    scenes = [composer.scene_of(layout, ordinal) for layout in LAYOUTS for ordinal in range(2)]
    return [(scene.picture, scene.turns[0].question) for scene in scenes]


def ask(url: str, picture: Image.Image, question: str, tokens: int, bias: dict[str, float]) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    image = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": tokens,
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": bias,
    }
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300)
    assert response.status_code == 200, response.text
    return dict(response.json())


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """What differs between two answers, or None; where the two best tokens tie, what follows may differ."""
    if ours["usage"]["prompt_tokens"] != theirs["usage"]["prompt_tokens"]:
        return f"prompt of {ours['usage']['prompt_tokens']} tokens, vLLM's of {theirs['usage']['prompt_tokens']}"
    mine, other = (answer["choices"][0]["logprobs"]["content"] for answer in (ours, theirs))
    for place, (a, b) in enumerate(zip(mine, other, strict=False)):
        if a["token"] != b["token"]:
            gap = a["top_logprobs"][0]["logprob"] - a["top_logprobs"][1]["logprob"]
            return None if gap < TIE else f"token {place}: {a['token']!r}, vLLM {b['token']!r}, {gap:.3f} nats apart"
    ended = [answer["choices"][0]["finish_reason"] for answer in (ours, theirs)]
    listed = len(other) - (ended[1] == "stop")  # vLLM lists the stop token too
    return None if (len(mine), ended[0]) == (listed, ended[1]) else f"{len(mine)} tokens, vLLM {listed}: {ended}"


def all_but_ascii(checkpoint: Path) -> dict[str, float]:
    """A bias against parts of characters: vLLM lists each of them as an empty text."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    texts = {token: tokenizer.decode([token], skip_special_tokens=True) for token in range(tokenizer.get_vocab_size())}
    return {str(token): -100 for token, text in texts.items() if not (text.isascii() and text.isprintable() and text)}


def differences(
    both: Both, checkpoint: Path, folder: Path, tokens: int, bias: dict[str, float] | None = None
) -> list[str]:
    asked = pictures(folder)
    with both(checkpoint, folder) as (worker, vllm):
        pairs = [(ask(worker, *each, tokens, bias or {}), ask(vllm, *each, tokens, bias or {})) for each in asked]
    said = [difference(ours, theirs) for ours, theirs in pairs]
    return [f"{asked[i][1]}: {text}" for i, text in enumerate(said) if text is not None]


def test_the_demo_answers_the_same_about_ten_pictures(both: Both, tmp_path: Path) -> None:
    assert differences(both, demo_checkpoint(), tmp_path, 40) == []


@pytest.mark.parametrize("name", ["llava-1.5", "llava-next-2024-01", "llava-next-2024-05"])
def test_exported_generations_answer_the_same(both: Both, tmp_path: Path, name: str) -> None:
    generation = replace(GENERATIONS[name], rounding="round7")  # vLLM knows no other
    # vLLM's attention on CPUs does not know smaller heads.
    tiny = make_tiny_checkpoint(tmp_path / "tiny", generation=generation, hidden_size=128, head_dim=64)
    assert export_for_transformers(tiny, tmp_path / "exported") == []
    exported = tmp_path / "exported"
    assert differences(both, exported, tmp_path, 12, all_but_ascii(exported)) == []
