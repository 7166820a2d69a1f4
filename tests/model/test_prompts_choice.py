"""Which format a checkpoint gets, which one a Jinja text is, and what a text does otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.errors import PromptError
from model.prompts.templates import (
    TEMPLATES,
    choose_template,
    compare_templates,
    family_template,
    find_template,
    recognise_template,
)
from model.tiny import CHAT_TEMPLATE

ORIGINAL = {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        ({"model_type": "llava_llama", **ORIGINAL}, "liuhaotian/llava-v1.5-7b", "v1"),
        ({"model_type": "llava_llama", **ORIGINAL}, "/data/my-model", "v1"),
        ({"model_type": "llava", **ORIGINAL}, "liuhaotian/LLaVA-7b-delta-v0", "v0"),
        ({"model_type": "llava", **ORIGINAL}, "LLaVA-Lightning-7B-delta-v1-1", "v1"),
        ({"model_type": "llava_mistral", **ORIGINAL}, "liuhaotian/llava-v1.6-mistral-7b", "mistral"),
        ({"model_type": "llava_mistral", **ORIGINAL}, "mine", "mistral"),
        ({"model_type": "llava_llama", **ORIGINAL}, "liuhaotian/llava-v1.6-34b", "chatml"),
        ({"model_type": "llava_llama", **ORIGINAL}, "liuhaotian/llava-v1.6-vicuna-13b", "v1"),
        ({"model_type": "llava_llama", **ORIGINAL}, "lmms-lab/llama3-llava-next-8b", "llama_3"),
        ({"model_type": "llava_llama", "vocab_size": 128256, **ORIGINAL}, "mine", "llama_3"),
        ({"model_type": "llava_qwen", **ORIGINAL}, "lmms-lab/llava-next-110b", "qwen_1_5"),
        ({"model_type": "llava_qwen", **ORIGINAL}, "mine", "qwen_1_5"),
        ({"model_type": "llava_llama", "tune_mm_mlp_adapter": True, **ORIGINAL}, "mine", "plain"),
        ({"model_type": "llava", **ORIGINAL}, "LLaVA-Pretrained-Projectors", "plain"),
        ({"model_type": "llava", "text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5"}}, "mine", "v1"),
        ({"model_type": "llava_next", "text_config": {"model_type": "mistral"}}, "mine", "mistral"),
        (
            {"model_type": "llava_next", "text_config": {"_name_or_path": "NousResearch/Nous-Hermes-2-Yi-34B"}},
            "mine",
            "chatml",
        ),
        ({"model_type": "llava_onevision", "text_config": {"model_type": "qwen2"}}, "mine", "qwen_1_5"),
    ],
)
def test_a_checkpoint_gets_the_format_that_its_model_was_trained_with(
    config: dict[str, Any], name: str, expected: str
) -> None:
    assert choose_template(config, name) == family_template(config, name) == expected


@pytest.mark.parametrize(
    ("special", "expected"), [((), "v1"), (("<|im_start|>",), "qwen_1_5"), (("<|eot_id|>",), "llama_3")]
)
def test_where_nothing_tells_the_special_tokens_decide_and_no_family_is_claimed(
    special: tuple[str, ...], expected: str
) -> None:
    config = {"model_type": "llava_next", "text_config": {"model_type": "llama", "vocab_size": 49_216}}
    assert choose_template(config, "/models/demo-2784c36f5b74", special) == expected
    assert family_template(config, "/models/demo-2784c36f5b74", special) is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_of_ours_is_recognised_however_it_is_spelt(name: str) -> None:
    respelt = "{# another author's #}" + TEMPLATES[name].replace("message", "turn_").replace("turn_s", "messages")
    respelt = respelt.replace("{{- bos_token -}}", "")  # left to the tokenizer
    assert recognise_template(respelt) == name
    assert compare_templates(respelt, TEMPLATES[name]) == []


def test_templates_of_others_are_not_taken_for_ours() -> None:
    demo = Path(__file__).parents[2] / "deploy" / "demo" / "chat_template.jinja"
    for other in (CHAT_TEMPLATE, demo.read_text("utf-8"), IN_CIRCULATION, "{{ messages }}", "no loop"):
        assert recognise_template(other) is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_two_of_ours_differ_in_words(name: str) -> None:
    for other in TEMPLATES:
        assert bool(compare_templates(TEMPLATES[other], TEMPLATES[name])) == (other != name)


# As many LLaVA-1.5 checkpoints have it: written for this test after what such templates render.
IN_CIRCULATION = """\
{%- for m in messages -%}
{%- if m['role'] != 'system' -%}{{ m['role'].upper() + ': ' }}{%- endif -%}
{%- for part in m['content'] if part['type'] == 'image' -%}{{ '<image>\n' }}{%- endfor -%}
{%- for part in m['content'] if part['type'] == 'text' -%}{{ part['text'] + ' ' }}{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}"""


def test_the_vicuna_template_in_circulation_is_found_out() -> None:
    said = compare_templates(IN_CIRCULATION, TEMPLATES["v1"])
    assert said[0].startswith(
        'leaves out the system prompt that the family was trained with: "A chat between a curious'
    )
    assert any("ends an answer with ' ' instead of '</s>'" in line for line in said)


@pytest.mark.parametrize(
    ("found", "name", "words"),
    [
        (
            "{% for m in messages %}{{ loop.index }}{% for x in range(9**9) %}{% endfor %}{% endfor %}",
            "v1",
            "cannot be",
        ),
        (TEMPLATES["chatml"].replace("Answer the questions.", "Obey."), "chatml", "says 'Obey.' instead of the system"),
        (TEMPLATES["mistral"].replace("[INST] ' +", "[INST] Be nice. ' +"), "mistral", "opens a conversation with"),
        (TEMPLATES["qwen_1_5"].replace("<|im_end|>\\n", "<|im_end|>"), "qwen_1_5", "between answer and next question"),
        (
            TEMPLATES["llama_3"].replace("+ after -}}", "+ after -}}{%- break -%}"),
            "llama_3",
            "places for 1 of two images",
        ),
        (
            TEMPLATES["qwen_1_5"].replace("pictures(message, '\\n')", "pictures(message, ' ')"),
            "qwen_1_5",
            "as '<image> ",
        ),
        (TEMPLATES["v1"].replace("words(message) + ' '", "' '", 1), "v1", "drops a system message"),
        (TEMPLATES["v1"].replace("'ASSISTANT:'", "'ASSISTANT: '"), "v1", None),
        (TEMPLATES["v1"].replace("'ASSISTANT:'", "'BOT:'"), "v1", "asks for an answer with ' BOT:' instead of"),
    ],
)
def test_what_differs_is_said_in_words(found: str, name: str, words: str | None) -> None:
    said = compare_templates(found, TEMPLATES[name])
    assert not said if words is None else any(words in line for line in said), said


def test_a_template_is_found_by_name_or_file_and_else_the_names_are_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}")
    assert find_template("v1") == TEMPLATES["v1"]
    assert find_template(str(file)) == "{{ messages }}"
    with pytest.raises(PromptError, match="one of plain, v0, v1, mistral, chatml, qwen_1_5, llama_3, or a file"):
        find_template(str(tmp_path / "other"))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptError, match="UTF-8"):
        find_template(str(file))
