"""A chat template that comes with a checkpoint may be anybody's: it ends, and one clear error says what it did."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint.files import read_json
from model.config import LlavaConfig
from model.errors import CheckpointError, PromptError
from model.prompts import ChatMessage, TextPart, load_prompter
from model.prompts.sandbox import MOST_SOURCE, BoundedTemplate, TemplateCostError
from model.tiny import make_tiny_checkpoint

GROW = "{%- set ns = namespace(x='aaaaaaaa') -%}{%- for i in range(60) -%}{%- set ns.x = GROWTH -%}{%- endfor -%}"
COSTLY = {
    "a loop in a loop": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "a loop of macros": "{% macro f() %}{% endmacro %}{% for i in range(99999) %}{{ f() }}{{ f() }}{% endfor %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a loop that recurs": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "a giant number of turns": "{% for i in range(10**9) %}{% endfor %}",
    "a giant power": "{{ 10 ** (10 ** 10) }}",
    "a giant product": "{% set n = 10 ** 1000 %}{{ n * n }}",
    "a repeated text": "{{ 'x' * 10 ** 10 }}",
    "a repeated list": "{{ [messages] * 10 ** 9 }}",
    "a text that doubles": GROW.replace("GROWTH", "ns.x ~ ns.x"),
    "a sum that doubles": GROW.replace("GROWTH", "ns.x + ns.x"),
    "a joint that doubles": GROW.replace("GROWTH", "[ns.x, ns.x] | join"),
    "a block that is repeated": "{% set b %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endset %}",
    "much output": "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "a wide field": "{{ '%9999999999d' % 1 }}",
    "a wide format": "{{ '{:9999999999}'.format(1) }}",
    "a wide filter": "{{ '%9999999999d' | format(1) }}",
    "a padded text": "{{ 'x' | center(10 ** 9) }}",
    "a padded number": "{{ '1'.zfill(10 ** 9) }}",
    "many slices": "{{ messages | slice(10 ** 9) | list }}",
}


@pytest.mark.parametrize("source", COSTLY.values(), ids=COSTLY)
def test_a_template_without_end_or_measure_is_stopped(source: str) -> None:
    with pytest.raises(TemplateCostError, match=r"does not finish|puts together|calls itself"):
        BoundedTemplate(source).render({"messages": [{"role": "user", "content": "q"}]})


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.items() }}",
        "{{ self.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ lipsum(n=9999) }}",
        "{{ (1).bit_length.__self__ }}{{ cycler.__init__.__globals__ }}",
        "{{ 1 // 0 }}",
        "{{ messages[7].content.text }}",
    ],
)
def test_a_template_that_reaches_out_or_fails_is_an_error_of_ours(source: str) -> None:
    with pytest.raises(PromptError, match="refuses this conversation"):
        BoundedTemplate(source).render({"messages": [{"role": "user", "content": "q"}]})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% if %}", r"cannot be read \(line 1\)"),
        ("{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}", "cannot be read"),
        ("x" * (MOST_SOURCE + 1), f"at most {MOST_SOURCE}"),
    ],
)
def test_a_text_that_is_no_template_is_refused(source: str, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        BoundedTemplate(source)


def test_what_templates_use_is_there() -> None:
    source = (
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- if loop.first -%}{%- continue -%}{%- endif -%}"
        "{%- set ns.n = ns.n + 1 -%}{% generation %}{{ m['content'] | trim }}{% endgeneration %}"
        "{%- endfor -%}{{ ' ' ~ ns.n ~ ' ' ~ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        " {{ {'a': 1} | tojson }} {{ '%05.1f' | format(2) }} {{ 'ab' * 2 }}{{ none_given }}"
        "{% macro f(x) %}({{ x }}{{ caller() }}){% endmacro %}{% call f(1) %}!{% endcall %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": " b "}]
    assert BoundedTemplate(source).render({"messages": messages}) == 'b 1 2 {"a": 1} 002.0 abab(1!)'


def test_a_long_conversation_is_no_loop_without_end() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x" * 1000}] * 4}] * 2000
    source = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    assert len(BoundedTemplate(source).render({"messages": messages})) == 8_000_000


@pytest.mark.parametrize(
    ("source", "words"),
    [(COSTLY["a loop in a loop"], "does not finish"), ("{% if %}", "cannot be read"), ("\udcff", "UTF-8")],
)
def test_a_checkpoint_with_such_a_template_is_refused_when_it_is_loaded(
    tmp_path: Path, source: str, words: str
) -> None:
    target = make_tiny_checkpoint(tmp_path / "hostile")
    (target / "chat_template.jinja").write_bytes(source.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=f"chat_template.jinja: .*{words}"):
        load_prompter(target, LlavaConfig.from_hf(read_json(target / "config.json")))


def test_a_template_that_loops_only_over_what_it_is_sent_is_stopped_then(tmp_path: Path) -> None:
    target = make_tiny_checkpoint(tmp_path / "patient")
    trap = "{% if 'now' in messages[0]['content'] %}" + COSTLY["a loop in a loop"] + "{% endif %}"
    (target / "chat_template.jinja").write_text(trap + "{{ messages[0]['content'] }}")
    prompter = load_prompter(target, LlavaConfig.from_hf(read_json(target / "config.json")))
    assert prompter.build([ChatMessage("user", (TextPart("later"),))], [])
    with pytest.raises(PromptError, match="does not finish"):
        prompter.build([ChatMessage("user", (TextPart("now"),))], [])
