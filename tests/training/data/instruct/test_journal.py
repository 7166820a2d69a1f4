"""The journal: what was written stays, whatever the file's end looks like."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.errors import DataError
from training.data.instruct.budget import Tokens
from training.data.instruct.journal import Answered, Failed, Journal, Sent, Settings

SETTINGS = Settings(model="m", temperature=0.5, max_tokens=100, prompts="p")


def answered(key: str, turn: int = 0, text: str = "text") -> Answered:
    return Answered(key, turn, text, "stop", 10, 5)


def write(file: Path, *records: Sent | Answered | Failed) -> None:
    async def work() -> None:
        with Journal(file, SETTINGS) as journal:
            await asyncio.gather(*map(journal.append, records))

    asyncio.run(work())


def test_answers_are_found_again_with_what_they_cost(tmp_path: Path) -> None:
    file = tmp_path / "j"
    write(file, Sent("a", 0, 50, 100), answered("a", text="first\nline é"), Sent("a", 1, 60, 100), answered("a", 1))
    with Journal(file, SETTINGS) as journal:
        assert journal.answer("a", 0).text == "first\nline é"
        assert journal.answer("b", 0) is None
        assert journal.spent.used == Tokens(20, 10)
        assert journal.spent.unsure == 0
        assert journal.notes == []


def test_requests_that_nothing_followed_count_as_perhaps_charged_each_time(tmp_path: Path) -> None:
    file = tmp_path / "j"
    write(file, Sent("a", 0, 50, 100), Sent("b", 0, 50, 100), answered("b"))
    write(file, Sent("a", 0, 50, 100))
    with Journal(file, SETTINGS) as journal:
        assert journal.spent.unsure == 2
        assert journal.spent.most == Tokens(110, 205)


def test_a_failed_request_costs_nothing_unless_it_may_have_been_charged(tmp_path: Path) -> None:
    file = tmp_path / "j"
    write(file, Sent("a", 0, 50, 100), Failed("a", 0, "HTTP 500", False), Sent("b", 0, 7, 8), Failed("b", 0, "", True))
    with Journal(file, SETTINGS) as journal:
        assert journal.spent.failed == 2
        assert journal.spent.most == Tokens(7, 8)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), texts=st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_cut_off_at_any_byte_it_keeps_every_whole_line_and_goes_on(
    data: st.DataObject, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("cut") / "j"
    write(file, *(answered(str(at), text=text) for at, text in enumerate(texts)))
    whole = file.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    file.write_bytes(whole[:cut])
    kept = max(0, whole[:cut].count(b"\n") - 1)
    write(file, answered("after"))
    with Journal(file, SETTINGS) as journal:
        assert journal.answers == kept + 1
        assert [journal.answer(str(at), 0).text for at in range(kept)] == texts[:kept]
        assert journal.answer("after", 0) is not None


def test_damage_within_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "j"
    write(file, answered("a"), answered("b"))
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([lines[0], lines[1][:-5], *lines[2:]]))
    with pytest.raises(DataError, match="line 2"):
        Journal(file, SETTINGS)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", SETTINGS), pytest.raises(DataError, match="another run"):
        Journal(tmp_path / "j", SETTINGS)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "j", answered("a"))
    with pytest.raises(DataError, match=r"temperature 0\.5, now it is 0\.7"):
        Journal(tmp_path / "j", Settings(model="m", temperature=0.7, max_tokens=100, prompts="p"))
