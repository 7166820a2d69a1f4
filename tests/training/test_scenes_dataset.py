"""Data sets on disk: LLaVA's schema, restarts, refusals, and text-only conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from training.scenes import DatasetError, chat_prompts, merge_chat, write_dataset
from training.scenes.chat import ChatFileError


def write(folder: Path, count: int = 12, mix: str = "instruct", **options: Any) -> list[dict[str, Any]]:
    arguments = {"split": "train", "seed": 0, "processes": 1} | options
    summary = write_dataset(
        folder, count=count, mix=mix, drawn_only=True, show_progress=False, cache_dir=folder / "cache", **arguments
    )
    rows = json.loads(summary.file.read_text("utf-8"))
    assert summary.scenes == len(rows)
    return rows  # type: ignore[no-any-return]


def test_rows_follow_llavas_schema_and_images_open(tmp_path: Path) -> None:
    rows = write(tmp_path)
    assert [row["id"] for row in rows] == [f"train-{index:06d}" for index in range(12)]
    for row in rows:
        with Image.open(tmp_path / row["image"]) as picture:
            picture.load()
            assert min(picture.size) >= 100
        talk = row["conversations"]
        assert [turn["from"] for turn in talk] == ["human", "gpt"] * (len(talk) // 2)
        assert talk[0]["value"].startswith("<image>\n")
        assert sum(turn["value"].count("<image>") for turn in talk) == 1
        assert all(turn["value"].strip() for turn in talk)
        assert len(row["families"]) == len(talk) // 2


def test_a_caption_mix_has_one_caption_turn(tmp_path: Path) -> None:
    for row in write(tmp_path, mix="caption"):
        assert len(row["conversations"]) == 2
        assert row["families"] == ["caption"]
        assert " on a" in row["conversations"][1]["value"]


def test_writing_again_finds_the_work_done_and_an_interrupted_run_continues(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", count=130)
    broken = tmp_path / "broken"
    write(broken, count=130)
    (broken / "train.json").unlink()  # as if it had stopped before the end: rows of one chunk remain
    kept = [json.dumps(row) for row in whole[:100]]
    (broken / "rows" / "00000.jsonl").write_text("\n".join(kept) + "\n")
    first_image = broken / whole[0]["image"]
    first_image.write_bytes(b"untouched")
    assert write(broken, count=130) == whole
    assert first_image.read_bytes() == b"untouched"  # the chunk on disk was not composed again
    assert write(tmp_path / "whole", count=130) == whole


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    one = write(tmp_path / "one", count=110)
    two = write(tmp_path / "two", count=110, processes=2)
    assert one == two
    for row in one[::20]:
        assert (tmp_path / "one" / row["image"]).read_bytes() == (tmp_path / "two" / row["image"]).read_bytes()


def test_a_folder_holds_one_recipe_only(tmp_path: Path) -> None:
    write(tmp_path, count=3)
    with pytest.raises(DatasetError, match="use another folder"):
        write(tmp_path, count=3, seed=1)
    with pytest.raises(DatasetError, match="use another folder"):
        write(tmp_path, count=3, split="test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"mix": "soup"}, "unknown mix 'soup'"),
        ({"count": 0}, "at least one scene"),
    ],
)
def test_bad_requests_say_what_to_do(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        write(tmp_path, **options)


def test_prompts_are_many_different_and_short() -> None:
    prompts = chat_prompts()
    assert len(prompts) >= 200
    assert len({prompt.turns for prompt in prompts}) == len(prompts)
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert all(1 <= len(prompt.turns) <= 2 for prompt in prompts)
    assert any(prompt.answers for prompt in prompts) and any(not prompt.answers for prompt in prompts)


def test_answers_are_mixed_in_and_merging_again_replaces_them(tmp_path: Path) -> None:
    scenes = write(tmp_path, count=20)
    file = tmp_path / "train.json"
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        '{"prompt": "Hello!", "answer": "Hi."}\n{"turns": ["One?", "Two?"], "answers": ["First.", "Second."]}\n'
    )
    own = [prompt for prompt in chat_prompts() if prompt.answers]
    assert merge_chat(file, answers, copies=2) == 2 * (2 + len(own))
    once = json.loads(file.read_text())
    assert [row for row in once if "image" in row] == scenes
    chat = [row for row in once if "image" not in row]
    assert len({row["id"] for row in chat}) == len(chat) == 2 * (2 + len(own))
    assert {turn["value"] for row in chat for turn in row["conversations"]} >= {"Hi.", "First.", "Second."}
    assert not any("<image>" in turn["value"] for row in chat for turn in row["conversations"])
    assert once != scenes + chat  # mixed, not appended
    merge_chat(file, answers, copies=2)
    assert json.loads(file.read_text()) == once


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 1"),
        ('{"question": "Hi"}', "line 1"),
        ('{"turns": ["a", "b"], "answers": ["c"]}', "2 turns but 1 answers"),
        ('{"prompt": "Hi"}', "has no answer"),
    ],
)
def test_a_bad_answers_file_is_refused_and_the_data_set_left_alone(tmp_path: Path, line: str, message: str) -> None:
    scenes = write(tmp_path, count=3)
    answers = tmp_path / "answers.jsonl"
    answers.write_text(line + "\n")
    with pytest.raises(ChatFileError, match=message):
        merge_chat(tmp_path / "train.json", answers)
    assert json.loads((tmp_path / "train.json").read_text()) == scenes
