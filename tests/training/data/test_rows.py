"""Files of rows: read one by one whatever their kind, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.errors import DataError
from training.data.rows import (
    BadRow,
    OnBad,
    Rejects,
    Row,
    RowFile,
    RowWriter,
    Spill,
    array_values,
    json_values,
    object_members,
    shape_fault,
)

ROW = {
    "id": "1",
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def values_of(file: Path) -> list[Any]:
    return [row.value for row in RowFile(file) if isinstance(row, Row)]


@settings(max_examples=60, deadline=None)
@given(values=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 2]), window=st.integers(1, 9))
def test_an_array_is_read_as_json_reads_it_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None, window: int
) -> None:
    file = tmp_path_factory.mktemp("json") / "a.json"
    file.write_text(json.dumps({"skipped": values, "also": {"a": values}, "kept": values}, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_WINDOW", window)
        read = list(array_values(file, "kept"))
    assert [value for _, value in read] == values
    assert [number for number, _ in read] == list(range(1, len(values) + 1))


def test_an_objects_members_come_in_the_files_order(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"z": 1, "a": {"b": [2]}}')
    assert [(m.number, m.key, m.value) for m in object_members(file)] == [(1, "z", 1), (2, "a", {"b": [2]})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a" 2}]', "not valid JSON at character 16"),
        ("[1, 2", "found the end"),
        ('["never', "Unterminated string"),
        ("[1] x", "text behind the value's end"),
        ("[NaN]", "NaN is not a number in JSON"),
        ("{}", "expected an array, found '{'"),
        ("", "expected an array, found the end"),
    ],
)
def test_broken_json_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        list(array_values(file))


def test_a_missing_member_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"info": {}, "images": []}')
    with pytest.raises(DataError, match="expected a member 'annotations', found info, images"):
        list(array_values(file, "annotations"))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows{suffix}"
    rows = [ROW, {**ROW, "image": ["a.png", "b.png"], "source": "x"}, {"id": "3", "conversations": [], "turns": "o"}]
    with RowWriter(file) as writer:
        for row in rows:
            writer.write(orjson.dumps(row))
    assert values_of(file) == rows
    assert list(tmp_path.iterdir()) == [file]


def test_an_empty_list_is_valid_json(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "a.json"):
        pass
    assert json.loads((tmp_path / "a.json").read_text()) == []


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_run_that_fails_leaves_the_file_that_was_there(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows{suffix}"
    file.write_text("old")
    with pytest.raises(RuntimeError), RowWriter(file) as writer:
        writer.write(orjson.dumps(ROW))
        raise RuntimeError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_broken_line_is_one_bad_row_and_the_rest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": 1}\n\n{"id": \n{"id": 3}\n')
    first, bad, last = RowFile(file)
    assert first == Row(1, {"id": 1}) and last == Row(4, {"id": 3})
    assert isinstance(bad, BadRow) and bad.where == f"{file}: line 3" and bad.row == '{"id": '


def test_a_table_with_pictures_in_it_is_refused_row_by_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"id": "1", "image": {"bytes": b"x", "path": "a.png"}, "conversations": ROW["conversations"]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (bad,) = RowFile(tmp_path / "a.parquet")
    assert isinstance(bad, BadRow) and "embedded" in bad.reason


@pytest.mark.parametrize("name", ["rows.txt", "gone.json"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=name):
        RowFile(tmp_path / name)


def turns(*pairs: str) -> list[dict[str, str]]:
    return [{"from": pair.partition(":")[0], "value": pair.partition(":")[2]} for pair in pairs]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (ROW, None),
        ({"conversations": turns("system:s", "human:q", "gpt:a", "human:q", "gpt:a")}, None),
        ({"image": ["a", "b"], "conversations": turns("human:<image> <image>", "gpt:a")}, None),
        ([], "expected an object"),
        ({"id": 1}, "expected a list of conversations"),
        ({"image": 3, "conversations": turns("human:q", "gpt:a")}, "image must be"),
        ({"image": "a", "conversations": turns("human:q", "gpt:a")}, "0 image places in the text, 1 images"),
        ({"conversations": turns("human:<image>", "gpt:a")}, "1 image places in the text, 0 images"),
        ({"image": "a", "conversations": turns("human:<image>", "gpt:<image>")}, "images stand in questions only"),
        ({"conversations": turns("human:q", "human:q", "gpt:a")}, "turn 2: expected gpt, found 'human'"),
        ({"conversations": turns("gpt:a")}, "turn 1: expected human"),
        ({"conversations": turns("human:q", "gpt: ")}, "turn 2: the answer is empty"),
        ({"conversations": turns("human:q", "gpt:a", "human:q")}, "the last turn must be gpt's"),
        ({"conversations": [{"from": "human"}]}, "turn 1: expected from and value"),
    ],
)
def test_a_rows_shape_is_what_the_trainer_takes(row: object, fault: str | None) -> None:
    found = shape_fault(row)
    assert found is None if fault is None else fault in str(found)


def test_bad_rows_stop_the_run_or_go_to_a_file(tmp_path: Path) -> None:
    bad = BadRow("a.json: row 7", "no answer", {1: "x"})
    with pytest.raises(DataError, match="row 7: no answer"), Rejects(OnBad.STOP, tmp_path / "r.jsonl") as rejects:
        rejects.add(bad)
    assert list(tmp_path.iterdir()) == []
    with Rejects(OnBad.REJECT, tmp_path / "r.jsonl") as rejects:
        rejects.add(bad)
    assert rejects.count == 1
    assert json.loads((tmp_path / "r.jsonl").read_text()) == {
        "where": "a.json: row 7",
        "reason": "no answer",
        "row": {"1": "x"},
    }


def test_rejects_of_an_earlier_run_do_not_outlive_it(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("old")
    with Rejects(OnBad.REJECT, tmp_path / "r.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []


@given(records=st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=20)), max_size=40))
@settings(max_examples=30, deadline=None)
def test_a_spill_gives_back_what_it_took_by_bucket(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("spill")
    with pytest.MonkeyPatch.context() as patch, Spill(folder) as spill:
        patch.setattr("training.data.rows.spill._HELD", 300)
        for bucket, record in records:
            spill.add(bucket, record)
        taken = list(spill.buckets())
    expected = [[record for at, record in records if at == bucket] for bucket in range(4)]
    assert taken == [found for found in expected if found]
    assert list(folder.iterdir()) == []
