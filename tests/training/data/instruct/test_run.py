"""`instruct` against a real endpoint that misbehaves: what is made, what is paid, what is said."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from training.data.conversations import read_conversations
from training.data.errors import DataError
from training.data.instruct.asking import Patience
from training.data.instruct.budget import Limits, Prices
from training.data.instruct.construct import Asked, Outcome, construct
from training.data.instruct.items import read_rows
from training.data.instruct.kinds import Kind

QUICK = Patience(attempts=4, first_wait=0.01)


@pytest.fixture
def asked(tmp_path: Path, endpoint) -> Asked:
    return Asked(tmp_path / "out", endpoint.url, total=24, patience=QUICK, concurrency=6, seconds=10.0)


def run(asked: Asked, items: Path) -> Outcome:
    return asyncio.run(construct(asked, read_rows(items), Console(file=io.StringIO())))


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_a_run_makes_the_rows_of_each_kind_in_proportion_and_the_trainer_reads_them(
    asked: Asked, pictures: Callable[[int], Path], endpoint
) -> None:
    outcome = run(asked, pictures(20))
    assert outcome.complete
    rows = lines(asked.out / "data.jsonl")
    assert Counter(row["source"] for row in rows) == {
        "instruct-conversation": 9,
        "instruct-detail": 3,
        "instruct-reasoning": 12,
    }
    conversations = read_conversations(asked.out / "data.jsonl", Path("images"))
    assert len({one.id for one in conversations}) == 24
    places = {row["conversations"][0]["value"].startswith("<image>\n") for row in rows}
    assert places == {True, False}
    assert outcome.spent.used.total == 24 * 150
    assert "24 rows by scripted" in (asked.out / "report.html").read_text("utf-8")


def test_conversation_is_asked_for_by_captions_alone_and_the_others_by_boxes_too(
    asked: Asked, pictures: Callable[[int], Path], endpoint
) -> None:
    run(asked, pictures(20))
    for ask in endpoint.asks:
        told = "dog: [0.100, 0.200, 0.500, 0.750]" in ask.context
        assert told == (ask.kind != "conversation")
        assert len(ask.body["messages"]) == (2 + 2 * (2 if ask.kind == "conversation" else 3))


def test_a_run_that_is_repeated_asks_nothing_and_writes_the_same(
    asked: Asked, pictures: Callable[[int], Path], endpoint
) -> None:
    items = pictures(20)
    run(asked, items)
    before, asks = (asked.out / "data.jsonl").read_bytes(), len(endpoint.asks)
    assert run(asked, items).complete
    assert len(endpoint.asks) == asks
    assert (asked.out / "data.jsonl").read_bytes() == before


def test_more_rows_later_keep_those_that_were_paid_for(asked: Asked, pictures: Callable[[int], Path], endpoint) -> None:
    items = pictures(20)
    run(asked, items)
    first = {row["id"] for row in lines(asked.out / "data.jsonl")}
    run(replace(asked, total=36), items)
    assert first < {row["id"] for row in lines(asked.out / "data.jsonl")}
    assert len(endpoint.asks) == 36


def test_an_endpoint_that_fails_in_every_way_is_asked_again_until_all_rows_are_there(
    asked: Asked, pictures: Callable[[int], Path], endpoint, says, fails, breaks
) -> None:
    moods = [
        fails(429, "0.05"),
        fails(500),
        fails(503, "0"),
        breaks("cut"),
        breaks("junk"),
        breaks("hang"),
        breaks("drip"),
        fails(429),
    ]

    def script(ask):
        mood = moods[int(ask.key[:4], 16) % len(moods)]
        return mood if ask.attempt == 0 else says()

    endpoint.script = script
    outcome = run(replace(asked, seconds=0.4, concurrency=24), pictures(20))
    assert outcome.complete
    assert max(endpoint.answered.values()) == 1
    unsure = sum(isinstance(script(ask), type(moods[3])) for ask in endpoint.asks if ask.attempt == 0)
    assert outcome.spent.unsure == unsure > 0
    assert outcome.spent.failed == 24


def test_retry_after_holds_every_request_not_only_the_one_that_was_told(
    asked: Asked, pictures: Callable[[int], Path], endpoint, says, fails
) -> None:
    moments: list[float] = []

    def script(ask):
        moments.append(time.monotonic())
        return fails(429, "0.5") if len(moments) == 1 else says(seconds=0.01)

    endpoint.script = script
    run(replace(asked, concurrency=2), pictures(20))
    # The second request may have left before the first was told to wait; all others come after the wait.
    assert moments[2] - moments[0] >= 0.5


def test_an_unusable_answer_is_asked_for_once_more_with_the_reason(
    asked: Asked, pictures: Callable[[int], Path], endpoint, says
) -> None:
    endpoint.script = lambda ask: says() if ask.repair else says("I would rather not.")
    outcome = run(asked, pictures(20))
    assert outcome.complete
    assert sum(tally.repaired for tally in outcome.tallies.values()) == 24
    told = [ask.body["messages"][-1]["content"] for ask in endpoint.asks if ask.repair and ask.kind != "detail"]
    assert all("does not begin with 'Question:'" in text for text in told)


def test_what_stays_unusable_is_rejected_with_why_and_replaced_as_far_as_the_spare_goes(
    asked: Asked, pictures: Callable[[int], Path], endpoint, says
) -> None:
    endpoint.script = lambda ask: says("The caption says so.") if "number 3" in ask.context else says()
    outcome = run(replace(asked, spare=1.0), pictures(20))
    rejects = lines(asked.out / "rejects.jsonl")
    assert outcome.complete
    assert rejects
    assert all(row["code"] == "form" or row["code"] == "length" for row in rejects)
    assert {row["image"] for row in rejects} == {"000003.jpg"}
    assert all(row["answer"] == "The caption says so." for row in rejects)
    assert "Not complete" not in (asked.out / "report.html").read_text("utf-8")


def test_near_duplicates_are_rejected_and_said_to_be_such(
    asked: Asked, pictures: Callable[[int], Path], endpoint, says
) -> None:
    endpoint.script = lambda ask: says(same=True)
    outcome = run(replace(asked, spare=0.0), pictures(20))
    assert not outcome.complete
    codes = Counter(row["code"] for row in lines(asked.out / "rejects.jsonl"))
    assert codes == {"duplicate": 21}
    assert len(lines(asked.out / "data.jsonl")) == 3


def test_the_budget_stops_the_run_before_it_is_passed_and_a_larger_one_goes_on(
    asked: Asked, pictures: Callable[[int], Path], endpoint, says
) -> None:
    endpoint.script = lambda ask: says(usage=(3000, 1000))
    items = pictures(20)
    tight = replace(asked, limits=Limits(tokens=60_000))
    outcome = run(tight, items)
    assert outcome.stopped is not None and "60,000 tokens" in outcome.stopped
    assert 60_000 - 8000 < outcome.spent.used.total <= 60_000
    assert "Not complete" in (asked.out / "report.html").read_text("utf-8")
    assert run(replace(asked, limits=Limits(tokens=200_000)), items).complete
    assert max(endpoint.answered.values()) == 1


def test_the_budget_may_be_money(asked: Asked, pictures: Callable[[int], Path], endpoint, says) -> None:
    endpoint.script = lambda ask: says(usage=(1000, 1000))
    prices = Prices(prompt=1.0, completion=10.0)
    outcome = run(replace(asked, limits=Limits(money=0.1), prices=prices), pictures(20))
    assert outcome.stopped is not None
    assert 0.05 < prices.cost(outcome.spent.used) <= 0.1


def test_requests_without_usage_are_counted_at_their_bound(
    asked: Asked, pictures: Callable[[int], Path], endpoint, says
) -> None:
    endpoint.script = lambda ask: says(usage=None)
    outcome = run(asked, pictures(20))
    assert outcome.spent.estimated == 24
    assert outcome.spent.used.completion == 24 * 1024


def test_no_more_requests_run_at_once_than_asked(asked: Asked, pictures: Callable[[int], Path], endpoint, says) -> None:
    endpoint.script = lambda ask: says(seconds=0.02)
    run(replace(asked, concurrency=3), pictures(20))
    assert endpoint.most_at_once == 3


def test_a_wrong_key_ends_the_run_at_once_with_what_the_endpoint_says(
    asked: Asked, pictures: Callable[[int], Path], endpoint, fails
) -> None:
    endpoint.script = lambda ask: fails(401, body='{"error": {"message": "no such key"}}')
    outcome = run(replace(asked, concurrency=2), pictures(20))
    assert outcome.stopped is not None and "no such key" in outcome.stopped
    assert len(endpoint.asks) <= 2


def test_an_endpoint_that_never_answers_is_given_up(
    asked: Asked, pictures: Callable[[int], Path], endpoint, fails
) -> None:
    endpoint.script = lambda ask: fails(500)
    patience = Patience(attempts=2, first_wait=0.0)
    outcome = run(replace(asked, patience=patience, total=40), pictures(40))
    assert outcome.stopped is not None and "in a row" in outcome.stopped
    assert len(endpoint.asks) <= 2 * (20 + asked.concurrency)


def test_a_refused_request_is_rejected_by_itself(
    asked: Asked, pictures: Callable[[int], Path], endpoint, says, fails
) -> None:
    endpoint.script = lambda ask: fails(400, body="not this one") if "number 3" in ask.context else says()
    outcome = run(replace(asked, spare=1.0), pictures(20))
    assert outcome.complete
    assert {row["code"] for row in lines(asked.out / "rejects.jsonl")} == {"refused"}


def test_a_journal_made_with_another_model_is_not_gone_on_with(
    asked: Asked, pictures: Callable[[int], Path], endpoint
) -> None:
    items = pictures(20)
    run(asked, items)
    with pytest.raises(DataError, match="made with model 'scripted', now it is 'another'"):
        run(replace(asked, model="another"), items)


def test_more_rows_than_the_pictures_allow_is_an_error_that_names_the_most(
    asked: Asked, pictures: Callable[[int], Path]
) -> None:
    with pytest.raises(DataError, match="20 pictures allow at most 41"):
        run(replace(asked, total=1000), pictures(20))


def test_every_kind_is_drawn_by_seed_alone_whatever_the_order_of_the_file(
    asked: Asked, pictures: Callable[[int], Path], tmp_path: Path
) -> None:
    items = pictures(20)
    run(asked, items)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(reversed(items.read_text("utf-8").splitlines())), "utf-8")
    run(replace(asked, out=tmp_path / "second"), turned)
    run(replace(asked, out=tmp_path / "third", seed=1), turned)
    first, second, third = (
        (folder / "data.jsonl").read_text("utf-8") for folder in (asked.out, tmp_path / "second", tmp_path / "third")
    )
    assert first == second != third
    assert set(Kind) == {Kind(row["source"].removeprefix("instruct-")) for row in map(json.loads, third.splitlines())}
