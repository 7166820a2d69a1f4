"""Mixes: so many rows of each source, each once, in an order that the seed alone decides."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deploy.data import app
from training.data.errors import DataError
from training.data.mix import Duplicates, MixReport, Sampling, mix, read_recipe, recipe_names
from training.data.mix.sampling import shares
from training.data.rows import OnBad, Row, RowFile, RowWriter

PUBLISHED_665K = {
    "llava-instruct": 157_712,
    "sharegpt": 40_688,
    "vqav2": 82_783,
    "gqa": 72_140,
    "okvqa": 8_998,
    "ocrvqa": 80_000,
    "aokvqa": 66_160,
    "textcaps": 21_953,
    "refcoco": 48_447,
    "visual-genome": 86_417,
}


def row(name: str, number: int, image: str | None = None) -> dict[str, Any]:
    place = "<image>\n" if image else ""
    talk = [{"from": "human", "value": f"{place}{name} {number}?"}, {"from": "gpt", "value": f"{number}."}]
    return {"id": f"{name}-{number}", **({"image": image} if image else {}), "conversations": talk}


def source(file: Path, count: int, image: str | None = None) -> Path:
    with RowWriter(file) as writer:
        for number in range(count):
            writer.write(orjson.dumps(row(file.stem, number, image)))
    return file


def recipe(folder: Path, text: str) -> str:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return str(file)


def mixed(file: Path) -> list[dict[str, Any]]:
    return [found.value for found in RowFile(file) if isinstance(found, Row)]


def run(folder: Path, text: str, **options: Any) -> tuple[MixReport, list[dict[str, Any]]]:
    out = folder / "out.jsonl"
    report = mix(read_recipe(recipe(folder, text)), folder, out, **options)
    return report, mixed(out)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("end:3", range(7, 10)),
        ("first:25%", range(3)),
        ("end:10%", range(9, 10)),
    ],
)
def test_first_and_end_take_the_rows_at_that_end(words: str, expected: range, tmp_path: Path) -> None:
    source(tmp_path / "a.json", 10)
    _, rows = run(tmp_path, f"datasets: [{{path: a.json, sampling: '{words}'}}]")
    assert sorted(int(r["id"][2:]) for r in rows) == list(expected)


@pytest.mark.parametrize(("words", "count"), [("random:4", 4), ("30%", 3), ("random:5%", 1)])
def test_random_rows_are_as_many_as_asked_and_the_seed_decides_which(words: str, count: int, tmp_path: Path) -> None:
    source(tmp_path / "a.jsonl", 10)
    text = f"datasets: [{{path: a.jsonl, sampling: '{words}'}}]"
    draws = [run(tmp_path, text, seed=seed, overwrite=True)[1] for seed in (0, 0, 1, 2, 3, 4)]
    assert {len(rows) for rows in draws} == {count}
    assert draws[0] == draws[1] and any(rows != draws[0] for rows in draws[2:])


@pytest.mark.parametrize("words", ["some", "first", "first:", "random:1.5", "first:-1", "101%", "half:3", "3"])
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(DataError, match="sampling"):
        Sampling.parse(words)


@given(rows=st.integers(0, 300), percent=st.integers(0, 100), seed=st.integers(0, 9))
def test_a_percentage_is_exact_and_rounds_up(rows: int, percent: int, seed: int) -> None:
    picks = list(Sampling.parse(f"{percent}%").picks(rows, Random(seed)))
    assert sum(picks) == -(-rows * percent // 100) and len(picks) == rows


def test_json_lines_and_parquet_give_the_same_mix(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    made = []
    for suffix in (".json", ".jsonl", ".parquet"):
        folder = tmp_path / suffix[1:]
        source(folder / f"a{suffix}", 20, "x.png")
        made.append(run(folder, f"datasets: [{{name: a, path: a{suffix}}}]")[1])
    assert made[0] == made[1] == made[2]


def test_the_order_depends_on_the_seed_and_the_rows_alone(tmp_path: Path) -> None:
    source(tmp_path / "a.json", 20)
    source(tmp_path / "b.json", 20)
    _, one = run(tmp_path, "datasets: [{path: a.json}, {path: b.json}]")
    _, other = run(tmp_path, "datasets: [{path: b.json}, {path: a.json}]", overwrite=True)
    assert one == other and [r["source"] for r in one] != ["a"] * 20 + ["b"] * 20
    assert sorted(r["id"] for r in one) == sorted(f"{n}-{i}" for n in "ab" for i in range(20))


def test_a_row_that_two_sources_share_is_written_once_and_told(tmp_path: Path) -> None:
    source(tmp_path / "a.json", 5)
    (tmp_path / "b.json").write_text(json.dumps([*mixed(tmp_path / "a.json")[:2], row("b", 7)]))
    text = "datasets: [{path: a.json}, {path: b.json}]"
    report, rows = run(tmp_path, text)
    assert len(rows) == report.written == 6
    assert [(d.written, d.duplicates) for d in report.datasets] == [(5, 0), (1, 2)]
    kept, rows = run(tmp_path, text, duplicates=Duplicates.KEEP, overwrite=True)
    assert len(rows) == kept.written == 8


def test_weights_share_out_the_total_and_a_short_source_gives_all(tmp_path: Path) -> None:
    for name, count in (("a", 100), ("b", 100), ("c", 5)):
        source(tmp_path / f"{name}.json", count)
    text = "total: 65\ndatasets: [{path: a.json, weight: 3}, {path: b.json}, {path: c.json, weight: 8}]"
    report, rows = run(tmp_path, text)
    assert [d.written for d in report.datasets] == [45, 15, 5] and len(rows) == 65


@given(
    sources=st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 50)), min_size=1, max_size=6), part=st.floats(0, 1)
)
def test_shares_add_up_and_none_gives_more_than_it_has(sources: list[tuple[float, int]], part: float) -> None:
    weights, available = [weight for weight, _ in sources], [rows for _, rows in sources]
    total = int(sum(available) * part)
    given_rows = shares(total, weights, available)
    assert sum(given_rows) == total and all(g <= has for g, has in zip(given_rows, available, strict=True))


def test_images_stand_below_the_sources_folder(tmp_path: Path) -> None:
    source(tmp_path / "a.json", 1, "x.png")
    _, (only,) = run(tmp_path, "datasets: [{path: a.json, images: coco/train2017/}]")
    assert only["image"] == "coco/train2017/x.png"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"conversations": []}], "a.json: row 1: expected a list of conversations"),
        ([row("a", 1), {**row("a", 2), "image": "x.png"}], "a.json: row 2: 0 image places in the text, 1 images"),
    ],
)
def test_a_bad_row_stops_the_mix_or_is_rejected(content: list[Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    text = "datasets: [{path: a.json}]"
    with pytest.raises(DataError, match=message):
        run(tmp_path, text)
    assert not (tmp_path / "out.jsonl").exists()
    report, rows = run(tmp_path, text, on_bad=OnBad.REJECT)
    assert report.rejected == 1 and len(rows) == len(content) - 1
    assert message.split(": ", 2)[2] in (tmp_path / "out.jsonl.rejects.jsonl").read_text()


def test_an_image_that_is_not_there_makes_a_bad_row(tmp_path: Path) -> None:
    source(tmp_path / "a.json", 1, "x.png")
    text = "datasets: [{path: a.json}]"
    with pytest.raises(DataError, match=r"row 1: image x\.png is not there"):
        run(tmp_path, text, image_folder=tmp_path)
    (tmp_path / "x.png").write_bytes(b"")
    assert run(tmp_path, text, image_folder=tmp_path)[0].written == 1


def test_a_dry_run_tells_what_is_missing_and_writes_nothing(tmp_path: Path) -> None:
    source(tmp_path / "a.json", 4, "x.png")
    text = "datasets: [{path: a.json, sampling: 'random:2'}, {path: gone.json, rows: 7}]"
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out.jsonl"
    report = mix(read_recipe(recipe(tmp_path, text)), tmp_path, out, image_folder=tmp_path, dry_run=True)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "recipe.yaml"])
    assert report.absent == [str(tmp_path / "gone.json")]
    assert (report.datasets[0].drawn, report.datasets[0].missing_images) == (2, 4)
    shown = CliRunner().invoke(app, ["mix", recipe(tmp_path, text), str(out), "--data", str(tmp_path), "--dry-run"])
    assert (
        shown.exit_code == 1 and "gone.json is not there" in shown.output and "2 rows would be written" in shown.output
    )


def test_a_mix_that_is_there_is_not_read_or_written_again(tmp_path: Path) -> None:
    file = source(tmp_path / "a.json", 4)
    text = "datasets: [{path: a.json}]"
    first, _ = run(tmp_path, text)
    os.utime(tmp_path / "out.jsonl", (0, 0))
    again, _ = run(tmp_path, text)
    assert again.already_there and again.written == first.written
    assert (tmp_path / "out.jsonl").stat().st_mtime == 0
    with pytest.raises(DataError, match="say --overwrite"):
        run(tmp_path, text, seed=1)
    source(file, 5)
    with pytest.raises(DataError, match="say --overwrite"):
        run(tmp_path, text)
    assert run(tmp_path, text, overwrite=True)[0].written == 5


@pytest.mark.parametrize("dataset", ["rows: 3", "sampling: 'first:9'"])
def test_another_number_of_rows_than_the_recipes_stops(dataset: str, tmp_path: Path) -> None:
    source(tmp_path / "a.json", 4)
    text = f"datasets: [{{path: a.json, {dataset}}}]"
    with pytest.raises(DataError, match="say --any-count"):
        run(tmp_path, text)
    assert run(tmp_path, text, any_count=True)[0].written == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected an object with a list of datasets"),
        ("datasets: [{sampling: all}]", "dataset 1: path: expected a file's name"),
        ("datasets: [{path: a, wieght: 2}]", "found wieght"),
        ("datasets: [{path: a, weight: 2}]", "a weight shares out the recipe's total"),
        ("datasets: [{path: a}, {path: b/a}]", "more than one dataset is called a"),
        ("datasets: [{path: a, sampling: most}]", "dataset 1: sampling 'most'"),
        ("datasets: {", "not valid YAML"),
    ],
)
def test_a_recipe_that_does_not_fit_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_recipe(recipe(tmp_path, text))


def test_yaml_files_of_llava_next_are_read(tmp_path: Path) -> None:
    text = 'datasets:\n  - json_path: a/b.json\n    sampling_strategy: "first:10%"\n'
    (dataset,) = read_recipe(recipe(tmp_path, text)).datasets
    assert (dataset.name, dataset.path, dataset.sampling) == ("b", "a/b.json", Sampling.parse("first:10%"))


def test_the_recipes_of_the_family_come_with_the_package() -> None:
    assert recipe_names() == [
        "llava-1.0-instruct",
        "llava-1.5-665k",
        "llava-1.5-pretrain-558k",
        "llava-next-760k",
        "llava-next-stage1.5",
        "llava-next-stage2",
    ]
    for name in recipe_names():
        assert read_recipe(name).name == name and read_recipe(name).about


def test_the_665k_recipe_gives_the_published_numbers_by_source(tmp_path: Path) -> None:
    """In full the sources add up to the published sum; stand-ins of a hundredth of their rows are mixed."""
    full = read_recipe("llava-1.5-665k")
    asked = {d.name: d.rows or d.sampling.size(10**9) for d in full.datasets}
    assert asked == PUBLISHED_665K and sum(asked.values()) == 665_298
    small = []
    for dataset in full.datasets:
        images = None if dataset.name == "sharegpt" else "x.jpg"
        if dataset.rows is None:
            small.append(replace(dataset, sampling=Sampling.parse("random:800")))
            source(tmp_path / dataset.path, 2079, images)
        else:
            small.append(replace(dataset, rows=dataset.rows // 100))
            source(tmp_path / dataset.path, dataset.rows // 100, images)
    out = tmp_path / "mix.json"
    report = mix(replace(full, datasets=tuple(small)), tmp_path, out)
    assert {d.name: d.written for d in report.datasets} == {n: count // 100 for n, count in PUBLISHED_665K.items()}
    assert len(json.loads(out.read_text())) == report.written
