"""Scenes are deterministic, their answers true by construction, and the splits share nothing."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest

from training.scenes import Composer, Family, Layout, Mix, Scene, drawn_catalogue, full_catalogue
from training.scenes.assets import PHOTO_LIST, MissingAssetError, require
from training.scenes.backgrounds import RGB, photos, split_of_colour
from training.scenes.phrases import NUMBERS
from training.scenes.spelled import WORDS_A_ROW, spelled_rows
from training.scenes.words import is_held_out, words


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sprites")


def composer(cache: Path, split: str = "train", seed: int = 3) -> Composer:
    return Composer(drawn_catalogue(), split, seed, Mix("instruct"), cache_dir=cache)


def scenes(cache: Path, layout: Layout, count: int, split: str = "train") -> list[Scene]:
    made = composer(cache, split)
    return [made.scene_of(layout, ordinal) for ordinal in range(count)]


def test_a_scene_is_a_function_of_seed_split_and_index(cache: Path) -> None:
    first, again = composer(cache), composer(cache)
    backwards = {index: again.scene(index) for index in reversed(range(12))}
    for index in range(12):
        scene = first.scene(index)
        assert scene.picture.tobytes() == backwards[index].picture.tobytes()
        assert scene.turns == backwards[index].turns
        assert scene.objects == backwards[index].objects
    assert composer(cache, seed=4).scene(0).picture.tobytes() != first.scene(0).picture.tobytes()
    assert composer(cache, split="test").scene(0).picture.tobytes() != first.scene(0).picture.tobytes()


def test_an_unknown_split_is_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        composer(cache, split="dev")


def test_a_full_deck_holds_the_exact_proportions(cache: Path) -> None:
    made = composer(cache)
    proportions = made.mix.proportions
    counts = Counter(made.scene(index).layout for index in range(proportions.total))
    assert counts == {
        Layout(name): getattr(proportions, name)
        for name in ("single", "pair", "left_right", "counting", "shapes", "reading", "small_print")
    }


def colours_of(background: str) -> list[RGB]:
    sort, *parts = background.split(":")
    assert sort in ("plain", "gradient", "texture")
    return [tuple(int(channel) for channel in part.strip("()").split(",")) for part in parts]  # type: ignore[misc]


def test_the_splits_share_no_background(cache: Path) -> None:
    used: dict[str, set[str]] = {}
    for split in ("train", "test"):
        made = composer(cache, split)
        names = {made.scene(index).background for index in range(150)}
        assert {split_of_colour(colour) for name in names for colour in colours_of(name)} == {split}
        used[split] = names
    assert not used["train"] & used["test"]
    assert {photo.path for photo in photos("train")}.isdisjoint(photo.path for photo in photos("test"))
    assert len(photos("train")) + len(photos("test")) == len(PHOTO_LIST)


def test_held_out_words_are_a_tenth_and_never_trained(cache: Path) -> None:
    seen, unseen = words(held_out=False), words(held_out=True)
    assert not set(seen) & set(unseen)
    assert 0.07 < len(unseen) / (len(seen) + len(unseen)) < 0.13
    assert all(3 <= len(word) <= 6 and word.isascii() and word.islower() for word in seen + unseen)
    for layout in (Layout.READING, Layout.SMALL_PRINT):
        for scene in scenes(cache, layout, 40):
            assert not is_held_out(scene.objects[0].name)
    for scene in scenes(cache, Layout.READING_UNSEEN, 20, "test"):
        assert is_held_out(scene.objects[0].name)


def test_a_training_set_asks_for_no_held_out_word_anywhere(cache: Path) -> None:
    made = composer(cache)
    for index in range(made.mix.proportions.total):
        scene = made.scene(index)
        assert scene.layout is not Layout.READING_UNSEEN
        for turn in scene.turns:
            for quoted in turn.question.split('"')[1::2]:
                assert not is_held_out(quoted)


@pytest.mark.parametrize("layout", [Layout.SINGLE, Layout.PAIR, Layout.COUNTING, Layout.SHAPES, Layout.READING])
def test_yes_and_no_are_exactly_balanced(cache: Path, layout: Layout) -> None:
    truths = Counter(t.truth for s in scenes(cache, layout, 16) for t in s.turns if t.family is Family.YES_NO)
    assert set(truths) == {"yes", "no"} and truths["yes"] == truths["no"] >= 8


def test_category_checks_are_balanced_independently_of_presence(cache: Path) -> None:
    pairs: Counter[tuple[str, ...]] = Counter()
    for scene in scenes(cache, Layout.SINGLE, 16):
        check = next(turn.truth for turn in scene.turns if turn.family is Family.CATEGORY_CHECK)
        pairs.update((turn.truth, check) for turn in scene.turns if turn.family is Family.YES_NO)
    assert set(pairs.values()) == {8} and len(pairs) == 4


def test_yes_no_questions_agree_with_the_picture(cache: Path) -> None:
    for layout in (Layout.SINGLE, Layout.PAIR, Layout.LEFT_RIGHT, Layout.COUNTING):
        for scene in scenes(cache, layout, 24):
            shown = {placed.name for placed in scene.objects}
            for turn in scene.turns:
                if turn.family is Family.YES_NO:
                    asked = next(
                        kind.name for kind in drawn_catalogue().kinds if kind.name in turn.question.split(" a")[1]
                    )
                    assert (asked in shown) == (turn.truth == "yes"), turn


def test_the_left_object_really_is_left(cache: Path) -> None:
    sides: Counter[str] = Counter()
    for scene in scenes(cache, Layout.LEFT_RIGHT, 60):
        left, right = sorted(scene.objects, key=lambda placed: placed.centre[0])
        width = scene.picture.width
        assert left.box[2] <= width // 2 <= right.box[0]
        assert left.name != right.name
        assert scene.turns[0].family is Family.LEFT_RIGHT
        for turn in scene.turns:
            if turn.family is not Family.LEFT_RIGHT:
                continue
            if turn.form == "side":
                subject = turn.question.split(" is the ")[-1] if "On which" in turn.question else turn.question[7:]
                on_left = subject.startswith(left.name)
                assert turn.truth == ("left" if on_left else "right")
            else:
                assert turn.truth == (left.name if "left" in turn.question else right.name)
            sides[turn.form + turn.choice if turn.form != "what" else ""] += 1
    assert sides["sideleft"] == sides["sideright"] == 30
    assert sides["whichfirst"] == sides["whichsecond"] == 30


def test_counts_are_what_is_in_the_picture_and_equally_frequent(cache: Path) -> None:
    seen: Counter[int] = Counter()
    for scene in scenes(cache, Layout.COUNTING, 16):
        turn = next(turn for turn in scene.turns if turn.family is Family.COUNTING)
        count = len(scene.objects)
        assert turn.truth == str(count)
        assert turn.answer == NUMBERS[count].capitalize() + "."
        seen[count] += 1
        for one in range(count):
            for other in range(one):
                assert not overlap(scene.objects[one].box, scene.objects[other].box)
    assert seen == {1: 4, 2: 4, 3: 4, 4: 4}


def overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_objects_lie_inside_the_picture_and_are_large_enough(cache: Path) -> None:
    for layout, least in ((Layout.SINGLE, 0.45), (Layout.LEFT_RIGHT, 0.3), (Layout.COUNTING, 0.3)):
        for scene in scenes(cache, layout, 30):
            width, height = scene.picture.size
            for placed in scene.objects:
                left, top, right, bottom = placed.box
                assert 0 <= left < right <= width and 0 <= top < bottom <= height
                assert max(right - left, bottom - top) / min(width, height) > least


def test_colours_and_shapes_are_those_that_were_drawn(cache: Path) -> None:
    for scene in scenes(cache, Layout.SHAPES, 24):
        by_name = {placed.name: placed.colour for placed in scene.objects}
        for turn in scene.turns:
            if turn.family is Family.COLOUR:
                assert turn.truth == next(by_name[name] for name in by_name if f"the {name}" in turn.question)
            if turn.family is Family.SHAPE:
                assert turn.truth in by_name
            if turn.family is Family.YES_NO:
                there = any(f"{colour} {name}" in turn.question for name, colour in by_name.items())
                assert there == (turn.truth == "yes")


def test_large_print_spans_the_picture_and_small_print_has_small_letters(cache: Path) -> None:
    for scene in scenes(cache, Layout.READING, 20):
        left, _, right, _ = scene.objects[0].box
        # A word of few letters in a flat picture is bounded by the height instead.
        assert (right - left) / scene.picture.width > 0.6 or scene.objects[0].box[3] - scene.objects[0].box[1] > 70
    for scene in scenes(cache, Layout.SMALL_PRINT, 20):
        _, top, _, bottom = scene.objects[0].box
        assert 5 <= bottom - top <= 20


def test_the_word_stands_out_from_its_background(cache: Path) -> None:
    for layout in (Layout.READING, Layout.SMALL_PRINT):
        for scene in scenes(cache, layout, 20):
            low, high = scene.picture.crop(scene.objects[0].box).convert("L").getextrema()
            assert high - low > 80


def test_every_scene_asks_four_to_eight_questions(cache: Path) -> None:
    made = composer(cache)
    for index in range(60):
        assert 4 <= len(made.scene(index).turns) <= 8


def test_the_catalogue_file_is_sound() -> None:
    catalogue = full_catalogue()
    assert 80 <= len(catalogue.kinds) <= 105
    assert {kind.category for kind in catalogue.kinds} == set(catalogue.categories)
    assert set(catalogue.category_synonyms) <= set(catalogue.categories)
    for kind in catalogue.kinds:
        for name in kind.similar:
            if name in ("glasses", "teddy bear", "palm tree", "tree", "bear"):
                continue
            raise AssertionError(f"unexpected similar kind {name}")


@pytest.mark.parametrize(
    ("name", "indefinite", "plural"),
    [
        ("cat", "a cat", "cats"),
        ("owl", "an owl", "owls"),
        ("umbrella", "an umbrella", "umbrellas"),
        ("scissors", "scissors", None),
        ("corn", "corn", None),
        ("church", "a church", "churches"),
        ("leaf", "a leaf", "leaves"),
        ("bus", "a bus", "buses"),
        ("dress", "a dress", "dresses"),
        ("magnifying glass", "a magnifying glass", "magnifying glasses"),
        ("sheep", "a sheep", "sheep"),
    ],
)
def test_kinds_speak_english(name: str, indefinite: str, plural: str | None) -> None:
    kind = full_catalogue().kind(name)
    assert kind.indefinite == indefinite
    assert kind.countable == (plural is not None)
    if plural is not None:
        assert kind.plural == plural


def test_a_missing_source_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(MissingAssetError, match="apt-get install openclipart-png"):
        require(Path("/usr/share/openclipart/png/animals/no-such-animal.png"))
    assert require(tmp_path) == tmp_path


def test_spelled_rows_hold_seen_words_and_right_answers() -> None:
    rows = spelled_rows(30, seed=1)
    assert rows == spelled_rows(30, seed=1) != spelled_rows(30, seed=2)
    for row in rows:
        assert row["turns"] == "independent" and len(row["conversations"]) == 2 * WORDS_A_ROW
        for ask, answer in itertools.pairwise(row["conversations"]):
            if ask["from"] != "human":
                continue
            told = re.search(r'"(\w+)"', answer["value"])
            word = told[1] if told else answer["value"].replace("-", "")
            assert not is_held_out(word)
            letters = re.sub(r"[^a-z]", "", ask["value"])
            assert (word in ask["value"]) if not told else word in letters
