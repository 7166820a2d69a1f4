"""Our templates against the reference's strings, rendered by transformers' own `apply_chat_template`.

The strings are what LLaVA and LLaVA-NeXT build (`llava/conversation.py`; v0: `llava/train/train.py`) for a system
message or none, a question with a picture, an answer and a second question: written out by hand from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers import AutoTokenizer

from model.checkpoint.files import read_json
from model.config import LlavaConfig
from model.prompts import ChatMessage, ImagePart, TextPart, load_prompter
from model.prompts.templates import TEMPLATES
from model.tiny import make_tiny_checkpoint

HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA_3 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
# [BOS] stands where a tokenizer's first token does, [EOS] where its last does. The system prompt is in braces.
REFERENCE = {
    "v0": (HUMAN, "[BOS]{}\n\n### Human: <image>\nWhat?\n### Assistant: A cat.\n### Human: Sure?\n### Assistant:"),
    "v1": (USER, "[BOS]{} USER: <image>\nWhat? ASSISTANT: A cat.[EOS]USER: Sure? ASSISTANT:"),
    "chatml": (
        "Answer the questions.",
        "<|im_start|>system\n{}<|im_end|><|im_start|>user\n<image>\nWhat?<|im_end|><|im_start|>assistant\n"
        "A cat.<|im_end|><|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n",
    ),
    "qwen_1_5": (
        "You are a helpful assistant.",
        "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat."
        "<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama_3": (
        LLAMA_3,
        "[BOS]<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "<image>\nWhat?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": (None, "[BOS][INST] {}<image>\nWhat? [/INST] A cat. [EOS][INST] Sure? [/INST]"),
}
WITH_SYSTEM = {"mistral": "<<SYS>>\nBe brief.\n<</SYS>>\n\n"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))
    tokenizer.add_special_tokens({"bos_token": "[BOS]", "eos_token": "[EOS]"})
    return tokenizer


def talk(form: str) -> list[dict[str, Any]]:
    image = {"image": {"type": "image"}, "image_url": {"type": "image_url", "image_url": {"url": "x"}}}

    def words(text: str) -> Any:
        return text if form == "text" else [{"type": "text", "text": text}]

    picture = "<image>\nWhat?" if form == "text" else [{"type": "text", "text": "What?"}, image[form]]
    return [
        {"role": "user", "content": picture},
        {"role": "assistant", "content": words("A cat.")},
        {"role": "user", "content": words("Sure?")},
    ]


@pytest.mark.parametrize("form", ["text", "image", "image_url"])
@pytest.mark.parametrize("name", REFERENCE)
def test_a_conversation_is_written_as_the_reference_writes_it(name: str, form: str, tokenizer: Any) -> None:
    default, reference = REFERENCE[name]
    system = {"role": "system", "content": talk(form)[1]["content"]}
    for given in ([], [system]):
        rendered = tokenizer.apply_chat_template(
            [*given, *talk(form)], chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
        )
        wrapped = WITH_SYSTEM.get(name, "Be brief.").replace("Be brief.", "A cat.") if given else default or ""
        assert rendered == reference.replace("{}", wrapped)


def test_a_caption_is_written_as_the_reference_writes_it(tokenizer: Any) -> None:
    talk_of_one = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "A cat."}]
    rendered = tokenizer.apply_chat_template(talk_of_one, chat_template=TEMPLATES["plain"], tokenize=False)
    assert rendered == "[BOS]<image>A cat.\n"


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"plain"}))
def test_parts_that_are_neither_text_nor_image_are_refused_by_name(name: str, tokenizer: Any) -> None:
    sound = [{"role": "user", "content": [{"type": "audio"}]}]
    with pytest.raises(jinja2.TemplateError, match="text and images, not audio"):
        tokenizer.apply_chat_template(sound, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("name", REFERENCE)
def test_the_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny")
    (checkpoint / "chat_template.jinja").write_text(TEMPLATES[name])
    config = LlavaConfig.from_hf(read_json(checkpoint / "config.json"))
    prompter = load_prompter(checkpoint, config)
    messages = [
        ChatMessage("user", (TextPart("What? 日本"), ImagePart())),
        ChatMessage("assistant", (TextPart("A cat."),)),
        ChatMessage("user", (TextPart("Sure?"),)),
    ]
    layout = config.geometry.layout(60, 40)
    theirs = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(
        [
            {"role": "user", "content": [{"type": "text", "text": "What? 日本"}, {"type": "image"}]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "Sure?"},
        ],
        add_generation_prompt=True,
        return_dict=False,
    )
    place = theirs.index(config.image_token_id)
    expanded = [*theirs[:place], *[config.image_token_id] * layout.tokens, *theirs[place + 1 :]]
    assert list(prompter.build(messages, [layout])) == expanded
