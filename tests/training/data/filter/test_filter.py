"""The noun-phrase filter: exactly the rule, whatever the file; memory that does not grow with it."""

from __future__ import annotations

import json
import tracemalloc
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deploy.cli import app
from training.data.errors import DataError
from training.data.filter.apply import filter_captions, tagged
from training.data.filter.noun_phrases import chunk, tagger
from training.data.filter.selection import Rule, Selection
from training.data.rows import OnBad


def select(captions: list[list[str]], rule: Rule, folder: Path, expected_bytes: int = 0) -> set[int]:
    with Selection(rule, folder, expected_bytes) as selection:
        for phrases in captions:
            selection.add(phrases)
        selection.finish()
        taken = {number for number in range(len(captions)) if selection.takes(number)}
        assert selection.counts.taken == len(taken)
    return taken


def holders_of(captions: list[list[str]]) -> dict[str, list[int]]:
    holders: dict[str, list[int]] = defaultdict(list)
    for number, phrases in enumerate(captions):
        for phrase in set(phrases):
            holders[phrase].append(number)
    return holders


CAPTIONS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=4), max_size=60)


@settings(max_examples=30, deadline=None)
@given(captions=CAPTIONS, least=st.integers(1, 5), buckets=st.sampled_from([0, 1 << 25]))
def test_where_no_phrase_is_frequent_it_takes_what_a_plain_loop_takes(
    captions: list[list[str]], least: int, buckets: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pool: set[int] = set()
    holders = holders_of(captions)
    for phrase in sorted(holders, key=lambda phrase: len(holders[phrase])):
        if len(holders[phrase]) >= least:
            pool.update(holders[phrase])
    assert select(captions, Rule(least, 1000), tmp_path_factory.mktemp("spill"), buckets) == pool


@settings(max_examples=30, deadline=None)
@given(captions=CAPTIONS, least=st.integers(1, 4), most=st.integers(1, 12), seed=st.integers(0, 3))
def test_of_frequent_phrases_it_takes_a_choice_of_the_size_that_was_asked(
    captions: list[list[str]], least: int, most: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The plain loop draws each phrase's choice by itself, from a file that holds nothing but this phrase."""
    folder = tmp_path_factory.mktemp("spill")
    pool: set[int] = set()
    holders = holders_of(captions)
    for phrase in sorted(holders, key=lambda phrase: len(holders[phrase])):
        if len(holders[phrase]) >= least:
            alone = [[phrase] if phrase in phrases else [] for phrases in captions]
            drawn = select(alone, Rule(least, most, seed), folder)
            assert len(drawn) == min(most, len(holders[phrase]))
            assert drawn <= set(holders[phrase])
            pool |= drawn
    assert select(captions, Rule(least, most, seed), folder) == pool


def test_the_choice_is_by_seed_and_favours_no_place_in_the_file(tmp_path: Path) -> None:
    captions = [["dog"]] * 1000
    taken = [select(captions, Rule(3, 100, seed), tmp_path) for seed in range(20)]
    assert all(len(one) == 100 for one in taken)
    assert len({frozenset(one) for one in taken}) == 20
    assert select(captions, Rule(3, 100, 7), tmp_path) == taken[7]
    early = sum(number < 500 for one in taken for number in one)
    assert 850 < early < 1150  # 1000 expected, 22 the standard deviation


def test_memory_does_not_grow_with_the_captions(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        with Selection(Rule(), tmp_path, 40 * count) as selection:
            for number in range(count):
                selection.add((f"thing {number % 5000}", f"kind {number % 97}"))
            filled = tracemalloc.get_traced_memory()[0]
            selection.finish()
        tracemalloc.stop()
        return filled

    # What waits in memory is bounded by the spill's own limit, 48 MiB, and not by the file.
    assert peak(60_000) < 60 << 20


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("a dog sits on the grass", {"dog", "grass"}),
        ("the red car in front of an old house", {"red car", "front", "old house"}),
        ("two young women with umbrellas", {"young women", "umbrellas"}),
        ("", set()),
    ],
)
def test_phrases_of_a_caption_by_brills_tagger(caption: str, phrases: set[str]) -> None:
    assert tagger("brill")(caption) == phrases


def test_a_phrase_ends_with_its_last_noun_and_begins_without_articles() -> None:
    tags = [("The", "DT"), ("Big", "JJ"), ("fire", "NN"), ("truck", "NN"), ("red", "JJ"), ("is", "VBZ")]
    assert chunk(tags) == {"big fire truck"}
    assert chunk([("red", "JJ")]) == set()
    assert chunk([("dog", "NN"), ("running", "VBG"), ("man", "NN-PERS")]) == {"dog", "running man"}


def test_processes_find_the_phrases_that_one_finds() -> None:
    captions = [f"a dog near house number {at}" for at in range(4500)]
    assert list(tagged(captions, "brill", 2)) == list(tagged(captions, "brill", 1))


def test_unknown_taggers_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="--tagger nothing: expected brill or spacy:MODEL"):
        tagger("nothing")


THINGS = ("zebra", "zebra", "zebra", "unicorn", *["dog"] * 30)


def rows() -> list[dict]:
    return [
        {"id": str(at), "image": f"{at}.jpg", "caption": f"a {thing} on the grass"} for at, thing in enumerate(THINGS)
    ]


def test_rows_that_are_taken_are_written_as_they_were_and_in_order(tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()), "utf-8")
    done = filter_captions(file, out, Rule(3, 10))
    kept = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row for row in rows() if row in kept] == kept
    assert [row["id"] for row in kept][:3] == ["0", "1", "2"]
    assert 10 + 3 <= len(kept) <= 10 + 10 + 3
    assert done.counts.phrases == 4  # zebra, unicorn, dog, grass
    assert (done.counts.skipped, done.counts.capped) == (1, 2)
    assert sorted(tmp_path.iterdir()) == [file, out]


def test_conversations_lists_and_tsv_are_read_too(tmp_path: Path) -> None:
    turns = [
        {**row, "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": row.pop("caption")}]}
        for row in rows()
    ]
    files = tmp_path / "in.json", tmp_path / "in.tsv", tmp_path / "in.jsonl"
    files[0].write_text(json.dumps(turns), "utf-8")
    files[1].write_text("".join(f"{row['caption']}\thttp://x/{row['image']}\n" for row in rows()), "utf-8")
    files[2].write_text("".join(json.dumps(row) + "\n" for row in rows()), "utf-8")
    taken = []
    for file in files:
        out = tmp_path / f"out-{file.suffix[1:]}.jsonl"
        filter_captions(file, out, Rule(3, 10))
        kept = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
        taken.append([row.get("image") or row["url"].removeprefix("http://x/") for row in kept])
    assert taken[0] == taken[1] == taken[2]


def test_a_row_without_a_caption_stops_the_run_or_goes_to_the_rejects(tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps(row) for row in rows()]
    lines[1:1] = ['{"id": "bad"}', "{"]
    file.write_text("\n".join(lines), "utf-8")
    with pytest.raises(DataError, match=r"in\.jsonl: line 2: expected a caption"):
        filter_captions(file, out, Rule())
    assert not out.exists()
    done = filter_captions(file, out, Rule(), on_bad=OnBad.REJECT)
    rejects = [json.loads(line) for line in (tmp_path / "out.rejects.jsonl").read_text("utf-8").splitlines()]
    assert done.rejected == len(rejects) == 2
    assert len(out.read_text("utf-8").splitlines()) == len(THINGS)


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()), "utf-8")
    result = CliRunner().invoke(app, ["data", "filter", str(file), "--out", str(out), "--most", "10"])
    assert result.exit_code == 0, result.output
    assert f"of {len(THINGS)} captions" in result.output
    assert CliRunner().invoke(app, ["data", "filter", str(file), "--out", str(file)]).exit_code == 1
