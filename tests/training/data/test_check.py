"""Checks find what the trainer, or its users, would stumble over, and say where."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from deploy.data import app
from model.checkpoint import load_checkpoint
from model.generations import GENERATIONS
from model.tiny import make_tiny_checkpoint
from training.data.batches import ExampleSet
from training.data.check import PRESETS, Checked, check, page
from training.data.check.histogram import Histogram
from training.data.check.tokens import TokenCounter
from training.data.check.twins import Twins
from training.data.conversations import read_conversations
from training.data.errors import DataError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def row(question: str, answer: str = "a", image: str | list[str] | None = None, **more: Any) -> dict[str, Any]:
    places = "<image>\n" * (0 if image is None else 1 if isinstance(image, str) else len(image))
    talk = [{"from": "human", "value": places + question}, {"from": "gpt", "value": answer}]
    return {"id": question, **({"image": image} if image else {}), "conversations": talk, **more}


def write(folder: Path, rows: list[Any]) -> Path:
    for name, size in (("a.png", (60, 40)), ("b.png", (30, 90))):
        Image.new("RGB", size, "red").save(folder / name)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def reasons(checked: Checked) -> list[str]:
    return [f"{found.kind}: {found.where.rpartition(': ')[2]}: {found.reason}" for found in checked.first]


def test_rows_that_are_sound_have_no_findings(tmp_path: Path) -> None:
    rows = [row("q", image="a.png", source="x"), row("p", image=["a.png", "b.png"], source="y"), row("o")]
    checked = check(write(tmp_path, rows), image_folder=tmp_path, decode=True)
    assert (checked.bad, checked.rows, checked.images, checked.answers) == (0, 3, 3, 3)
    assert checked.sources == {"x": 1, "y": 1, "not said": 1}
    assert (checked.widths.least, checked.widths.most, checked.heights.most) == (30, 60, 90)


def test_a_bad_shape_and_images_that_do_not_open_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    whole = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 90).save(whole)
    whole.write_bytes(whole.read_bytes()[:600])
    rows = [{"id": 1}, row("q", image="gone.png"), row("p", image="text.png"), row("o", image="cut.png")]
    checked = check(write(tmp_path, rows), image_folder=tmp_path)
    assert reasons(checked)[:2] == [
        "row: row 1: expected a list of conversations",
        "image: row 2: image gone.png is not there",
    ]
    assert "image text.png does not open" in reasons(checked)[2] and checked.bad == 3
    assert check(write(tmp_path, rows), image_folder=tmp_path, decode=True).bad == 4


def test_rows_that_say_the_same_are_found_and_equal_ids_do_no_harm(tmp_path: Path) -> None:
    rows = [row("q"), row("p"), {**row("q"), "id": "other"}, {**row("r"), "id": "p"}]
    file = write(tmp_path, rows)
    checked = check(file)
    assert reasons(checked) == ["duplicate: row 3: says the same as row 1"]
    assert checked.kinds == {"duplicate": 1, "duplicate-id": 1} and checked.bad == 1
    assert check(file, allow=("duplicate",)).bad == 1
    with pytest.raises(DataError, match="cannot allow everything"):
        check(file, allow=("everything",))


def test_tokens_are_those_of_the_trainer(tmp_path: Path, tiny: Path) -> None:
    talk = row("first?", "one", "a.png")
    talk["conversations"] += [{"from": "human", "value": "second?"}, {"from": "gpt", "value": "two"}]
    rows = [row("q", "x" * 50, "a.png"), row("p"), {**talk, "turns": "independent"}, talk, row("z", image="b.png")]
    file = write(tmp_path, rows)
    checkpoint = load_checkpoint(tiny, dtype=torch.float32)
    examples = ExampleSet(
        read_conversations(file, tmp_path),
        checkpoint.prompter,
        checkpoint.preprocessor,
        view="full",
        max_length=10**6,
    )
    lengths = [len(examples[place].token_ids) for place in range(len(rows))]
    counter = TokenCounter(tiny, None)
    sizes = {"a.png": (60, 40), "b.png": (30, 90)}
    assert [counter.count(r, [sizes[r["image"]]] if "image" in r else []) for r in rows] == lengths
    checked = check(file, image_folder=tmp_path, counter=counter, max_tokens=max(lengths) - 1)
    assert [found.reason for found in checked.first if found.kind == "tokens"] == [
        f"{max(lengths):,} tokens, more than {max(lengths) - 1:,}"
    ] * lengths.count(max(lengths))
    assert (checked.tokens.total, checked.tokens.least) == (sum(lengths), min(lengths))


@pytest.mark.parametrize(("preset", "image_tokens"), [("llava-1.0", 256), ("llava-1.5", 576)])
def test_a_preset_counts_images_as_its_stage_does(preset: str, image_tokens: int, tiny: Path) -> None:
    counter = TokenCounter(tiny, preset)
    assert counter.count(row("q", image="a.png"), [(60, 40)]) - counter.count(row("q"), []) - image_tokens in range(
        1, 4
    )


def test_anyres_presets_count_tiles_and_early_stages_none(tiny: Path) -> None:
    sized = row("q", image="a.png")
    early, late = (TokenCounter(tiny, f"llava-next-2024-05{stage}") for stage in ("-pretrain", ""))
    assert early.count(sized, [(600, 400)]) < 800 < late.count(sized, [(600, 400)])


def test_every_preset_is_a_generation() -> None:
    assert all(preset.generation in GENERATIONS for preset in PRESETS.values())


def test_an_unknown_preset_is_named(tiny: Path) -> None:
    with pytest.raises(DataError, match=r"preset llava-9: expected one of llava-1\.0"):
        TokenCounter(tiny, "llava-9")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_needs_no_network_and_takes_text_for_text(tmp_path: Path) -> None:
    checked = check(write(tmp_path, [row("q", source="<script>alert(1)</script>"), {"id": "<b>"}, 3]))
    html = page("<i>rows</i>", checked)
    tags = Tags()
    tags.feed(html)
    names = {tag for tag, _ in tags.seen}
    assert not names & {"script", "link", "img", "iframe", "i"} and "svg" in names
    assert not any("src" in attributes or "href" in attributes for _, attributes in tags.seen)
    assert "http" not in html and "2 findings" in html


@given(numbers=st.lists(st.integers(0, 10**7), min_size=1, max_size=60))
def test_a_histogram_counts_every_number_once_and_in_its_bin(numbers: list[int]) -> None:
    histogram = Histogram()
    for number in numbers:
        histogram.add(number)
    bars = histogram.bars()
    assert sum(count for *_, count in bars) == len(numbers) == histogram.count
    assert (histogram.least, histogram.most, histogram.total) == (min(numbers), max(numbers), sum(numbers))
    for start, below, count in bars:
        assert count == sum(start <= number < below for number in numbers)


@given(said=st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=30))
def test_each_later_row_that_says_the_same_is_paired_with_the_first(said: list[bytes]) -> None:
    twins = Twins()
    for number, words in enumerate(said, 1):
        twins.add(number, words)
    expected = [(n, said.index(words) + 1) for n, words in enumerate(said, 1) if said.index(words) + 1 < n]
    assert twins.pairs() == expected


def test_more_rows_than_there_was_room_for_are_kept() -> None:
    twins = Twins()
    for number in range(10_000):
        twins.add(number, str(number % 9_999).encode())
    assert twins.pairs() == [(9_999, 0)]


def test_the_command_ends_with_1_when_anything_is_wrong(tmp_path: Path) -> None:
    good, bad = write(tmp_path, [row("q")]), tmp_path / "bad.json"
    bad.write_text(json.dumps([row("q"), 3]))
    run = CliRunner()
    assert run.invoke(app, ["check", str(good), "--html", str(tmp_path / "p.html")]).exit_code == 0
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
    failed = run.invoke(app, ["check", str(bad)])
    assert failed.exit_code == 1 and "row 2: expected an object, found int" in failed.output
    assert run.invoke(app, ["check", str(tmp_path / "gone.json")]).exit_code == 1
