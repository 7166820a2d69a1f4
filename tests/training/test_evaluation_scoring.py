"""Scoring rules, family by family, and the statistics beside a score."""

from __future__ import annotations

import pytest

from training.evaluation import Tally
from training.evaluation.result import majority
from training.evaluation.scoring import Scorer, normalise
from training.scenes import Family, Turn, full_catalogue

SCORER = Scorer(full_catalogue())


@pytest.mark.parametrize(
    ("family", "truth", "answer", "right"),
    [
        (Family.NAMING, "cat", "A cat.", True),
        (Family.NAMING, "cat", "THE CAT!", True),
        (Family.NAMING, "cat", "It shows a kitten", True),
        (Family.NAMING, "cat", "Three cats.", True),
        (Family.NAMING, "cat", "A dog.", False),
        (Family.NAMING, "cat", "A cat or a dog.", False),
        (Family.NAMING, "cat", "A category.", False),
        (Family.NAMING, "cat", "", False),
        (Family.NAMING, "tree", "A palm tree.", False),
        (Family.NAMING, "palm tree", "A palm tree.", True),
        (Family.NAMING, "bear", "A teddy bear.", False),
        (Family.NAMING, "teddy bear", "A teddy  bear", True),
        (Family.NAMING, "magnifying glass", "A magnifying glass.", True),
        (Family.NAMING, "airplane", "A plane.", True),
        (Family.NAMING, "scissors", "A pair of scissors.", True),
        (Family.NAMING, "shirt", "A T-shirt.", True),
        (Family.NAMING, "cat+car", "A cat and a car.", True),
        (Family.NAMING, "cat+car", "A car and a cat.", True),
        (Family.NAMING, "cat+car", "A cat.", False),
        (Family.CATEGORY, "animal", "It is an animal.", True),
        (Family.CATEGORY, "animal", "Animal", True),
        (Family.CATEGORY, "animal", "It is a vehicle.", False),
        (Family.CATEGORY, "animal", "An animal or a plant.", False),
        (Family.CATEGORY, "instrument", "It is a musical instrument.", True),
        (Family.CATEGORY, "clothing", "A piece of clothing.", True),
        (Family.CATEGORY, "household", "It is a household item.", True),
        (Family.YES_NO, "yes", "Yes.", True),
        (Family.YES_NO, "yes", "yes, there is a cat", True),
        (Family.YES_NO, "yes", "No.", False),
        (Family.YES_NO, "no", "There is no cat.", False),
        (Family.YES_NO, "no", "Not sure.", False),
        (Family.YES_NO, "no", "No!", True),
        (Family.CATEGORY_CHECK, "no", "no", True),
        (Family.LEFT_RIGHT, "left", "To the left.", True),
        (Family.LEFT_RIGHT, "left", "It is on the LEFT side.", True),
        (Family.LEFT_RIGHT, "left", "left or right", False),
        (Family.LEFT_RIGHT, "left", "The cat.", False),
        (Family.LEFT_RIGHT, "cat", "The cat.", True),
        (Family.LEFT_RIGHT, "cat", "The cat is on the left of the car.", False),
        (Family.COUNTING, "3", "Three.", True),
        (Family.COUNTING, "3", "There are 3 cats.", True),
        (Family.COUNTING, "3", "Three or four.", False),
        (Family.COUNTING, "3", "Thirteen", False),
        (Family.COUNTING, "1", "A cat", False),
        (Family.READING, "house", 'The word is "house".', True),
        (Family.READING, "house", "The word is “House”.", True),
        (Family.READING, "house", "house", True),
        (Family.READING, "house", "It says house.", True),
        (Family.READING, "house", 'The word is "houses".', False),
        (Family.READING, "house", 'The word is "the house".', False),
        (Family.READING, "house", 'The word is "mouse" or "house".', False),
        (Family.READING, "the", 'The word is "the".', True),
        (Family.READING, "house", "", False),
    ],
)
def test_an_answer_is_right_or_wrong_by_rule(family: Family, truth: str, answer: str, right: bool) -> None:
    assert SCORER.right(Turn(family, "?", "", truth), answer) is right


@pytest.mark.parametrize("kind", full_catalogue().kinds, ids=lambda kind: kind.name)
def test_the_training_answers_of_every_kind_score_right(kind: object) -> None:
    name, category = kind.name, kind.category  # type: ignore[attr-defined]
    said = kind.indefinite.capitalize() + "."  # type: ignore[attr-defined]
    assert SCORER.right(Turn(Family.NAMING, "?", "", name), said)
    phrase = full_catalogue().categories[category]
    assert SCORER.right(Turn(Family.CATEGORY, "?", "", category), f"It is {phrase}.")


def test_families_without_a_rule_are_refused() -> None:
    with pytest.raises(ValueError, match="not scored"):
        SCORER.right(Turn(Family.DESCRIPTION, "?", "", ""), "A cat.")


def test_normalising_drops_case_articles_and_punctuation() -> None:
    assert normalise("The Cat, and a  DOG!") == "cat and dog"


@pytest.mark.parametrize(
    ("right", "answered", "low", "high"),
    # Wilson's score interval (1927) at z = 1.96, computed in 50-digit decimal arithmetic.
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (180, 200, 0.8506, 0.9343)],
)
def test_intervals_are_wilsons(right: int, answered: int, low: float, high: float) -> None:
    interval = Tally(right, answered).interval
    assert interval == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_nothing_answered_says_nothing() -> None:
    assert Tally(0, 0, failed=5).rate == 0.0
    assert Tally(0, 0, failed=5).interval == (0.0, 1.0)


def test_the_best_constant_answer_is_found_form_by_form() -> None:
    def turn(form: str, choice: str) -> Turn:
        return Turn(Family.LEFT_RIGHT, "?", "", "cat", form, choice)

    turns = [turn("which", "first")] * 3 + [turn("which", "second")] + [turn("side", "left"), turn("side", "right")]
    assert majority(turns) == pytest.approx((3 + 1) / 6)
    assert majority([]) == 0.0
