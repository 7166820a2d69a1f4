"""The prompt format that a worker serves with: by name or file, held against the family's, its ends heard."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from model.errors import PromptError
from model.prompts.templates import TEMPLATES
from worker.settings import StartError, WorkerSettings
from worker.start import ModelFiles, choose_prompter, start_service


@pytest.fixture
def speaking(files: ModelFiles) -> Any:
    """Lets the tiny checkpoint speak in one of the family's formats."""

    def speak(name: str) -> ModelFiles:
        return dataclasses.replace(files, prompter=files.prompter.with_template(TEMPLATES[name]))

    return speak


async def test_an_answer_ends_before_the_formats_stop_string(stage: Any, props: Any, speaking: Any) -> None:
    opened = await stage(props.say(" It is a cat.\n### Human: and then?"), files=speaking("v0"))
    answer = (await opened.chat("what?")).json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("It is a cat.", "stop")
    asked = props.tokenizer.decode(opened.engine.requests[0].token_ids)
    assert asked.endswith("### Human: what?\n### Assistant:")
    assert opened.engine.cancelled, "the engine must not go on behind the end"


async def test_a_streamed_answer_never_shows_a_part_of_the_stop_string(stage: Any, props: Any, speaking: Any) -> None:
    opened = await stage(props.say(" a # b\n## c\n### Human:"), files=speaking("v0"))
    body = {"model": "tiny", "messages": [{"role": "user", "content": "q"}], "stream": True}
    text = (await opened.client.post("/v1/chat/completions", json=body)).text
    pieces = [line.split('"content":"')[1].split('"')[0] for line in text.splitlines() if '"content":"' in line]
    assert "".join(pieces) == "a # b\\n## c"


async def test_a_clients_own_stop_strings_hold_beside_the_formats(stage: Any, props: Any, speaking: Any) -> None:
    opened = await stage(props.say(" one two\n###"), files=speaking("v0"))
    assert (await opened.chat(stop=" two")).json()["choices"][0]["message"]["content"] == "one"
    assert (await opened.chat(stop="three")).json()["choices"][0]["message"]["content"] == "one two"


async def test_neither_a_raw_completion_nor_ignore_eos_heeds_them(stage: Any, props: Any, speaking: Any) -> None:
    opened = await stage(props.say(" one\n### two"), files=speaking("v0"))
    raw = await opened.client.post("/v1/completions", json={"model": "tiny", "prompt": "p", "max_tokens": 20})
    assert raw.json()["choices"][0]["text"] == " one\n### two"
    ignoring = (await opened.chat(ignore_eos=True, max_tokens=12)).json()["choices"][0]["message"]["content"]
    assert ignoring.startswith("one\n### two")


async def test_the_space_of_the_format_is_no_part_of_an_answer(stage: Any, props: Any, speaking: Any) -> None:
    v1 = await stage(props.say("  cat"), files=speaking("v1"))
    assert (await v1.chat()).json()["choices"][0]["message"]["content"] == " cat"
    chatml = await stage(props.say(" cat"), files=speaking("qwen_1_5"))
    assert (await chatml.chat()).json()["choices"][0]["message"]["content"] == " cat"


async def test_what_a_format_cannot_say_is_answered_400_with_the_reason(stage: Any, speaking: Any) -> None:
    opened = await stage(files=speaking("v1"))
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    refused = await opened.client.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert "message 2 must be of assistant" in refused.json()["error"]["message"]


def test_a_worker_is_given_another_format_by_name_or_file(checkpoint: Path, files: ModelFiles, tmp_path: Path) -> None:
    own = files.prompter
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}!")
    assert choose_prompter(own, files.config, checkpoint, None) is own
    assert choose_prompter(own, files.config, checkpoint, "v1").template == TEMPLATES["v1"]
    assert choose_prompter(own, files.config, checkpoint, str(file)).template == file.read_text()
    with pytest.raises(PromptError, match="No chat template 'v9': expected one of plain"):
        choose_prompter(own, files.config, checkpoint, "v9")


def test_a_format_that_there_is_not_stops_the_start_in_one_line(checkpoint: Path) -> None:
    with pytest.raises(StartError, match="No chat template 'v9'") as stopped:
        start_service(WorkerSettings(model=str(checkpoint), chat_template="v9", device="cpu", dtype="float32"))
    assert "\n" not in str(stopped.value)


def test_one_line_says_how_a_template_departs_from_the_familys(
    checkpoint: Path, files: ModelFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vicuna = tmp_path / "llava-v1.5-7b"
    vicuna.mkdir()
    with caplog.at_level(logging.WARNING, "tephra.worker"):
        choose_prompter(files.prompter, files.config, vicuna, None)
        choose_prompter(files.prompter, files.config, vicuna, "v1")  # nothing to say
        choose_prompter(files.prompter, files.config, checkpoint, None)  # of no family that is known
    (line,) = [record.getMessage() for record in caplog.records]
    assert "'v1'" in line and "leaves out the system prompt that the family was trained with" in line
    assert "--chat-template v1" in line and "\n" not in line
