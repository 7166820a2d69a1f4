"""The questions and answers: a handful of phrasings for each family, one consistent way to answer each.

Knows words only; which of them are true of a picture is the composer's business.
"""

from __future__ import annotations

from random import Random

from training.scenes.catalogue import Catalogue, Kind
from training.scenes.scene import Family, Placed, Turn
from training.scenes.wording import with_article

NUMBERS = ("zero", "one", "two", "three", "four")

NAMING = (
    "What is in the picture?",
    "What is this?",
    "What do you see?",
    "What does the picture show?",
    "What can you see in this image?",
)
CATEGORY = (
    "What kind of thing is it?",
    "What category does it belong to?",
    "What sort of thing is shown here?",
    "To which group of things does this belong?",
)
PRESENCE = (
    "Does the picture show {}?",
    "Can you see {} in the picture?",
    "Do you see {} here?",
    "Does this image show {}?",
)
CATEGORY_CHECK = ("Is it {}?", "Is this {}?", "Would you call this {}?")
COUNTING = (
    "How many {} are there?",
    "How many {} do you see?",
    "How many {} does the picture show?",
    "Count the {}.",
)
READING = (
    "What word is written here?",
    "What does it say?",
    "Read the word.",
    "Which word do you see?",
    "What is written in the picture?",
)
SPELLING = ("Spell the word.", "Spell the word letter by letter.", "Which letters does the word have?")
CAPTION = (
    "Describe the picture in a few words.",
    "Write a short caption for this picture.",
    "Give a brief description of the image.",
    "Caption this image.",
)
DESCRIPTION = (
    "Describe the picture.",
    "Describe this image in a sentence or two.",
    "Tell me about the picture.",
)


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def sentence(text: str) -> str:
    return capital(text) + "."


def yes_no(truth: bool) -> tuple[str, str]:
    """Answer and truth of a yes/no question."""
    return ("Yes.", "yes") if truth else ("No.", "no")


def naming(rng: Random, things: str, truth: str) -> Turn:
    """`things` is what the answer says ("a cat", "three cats"), `truth` the kind or kinds, joined by "+"."""
    return Turn(Family.NAMING, rng.choice(NAMING), sentence(things), truth)


def category(rng: Random, kind: Kind, catalogue: Catalogue) -> Turn:
    phrase = catalogue.categories[kind.category]
    return Turn(Family.CATEGORY, rng.choice(CATEGORY), f"It is {phrase}.", kind.category)


def presence(rng: Random, thing: str, present: bool) -> Turn:
    answer, truth = yes_no(present)
    return Turn(Family.YES_NO, rng.choice(PRESENCE).format(thing), answer, truth)


def category_check(rng: Random, phrase: str, fits: bool) -> Turn:
    answer, truth = yes_no(fits)
    return Turn(Family.CATEGORY_CHECK, rng.choice(CATEGORY_CHECK).format(phrase), answer, truth)


def counting(rng: Random, plural: str, count: int) -> Turn:
    return Turn(Family.COUNTING, rng.choice(COUNTING).format(plural), sentence(NUMBERS[count]), str(count))


def which_side(rng: Random, first: str, second: str, first_is_left: bool, asked_left: bool) -> Turn:
    """ "Which is on the left, the cat or the car?" """
    side = "left" if asked_left else "right"
    question = rng.choice(
        (
            f"Which is on the {side}, the {first} or the {second}?",
            f"Which one is on the {side}: the {first} or the {second}?",
        )
    )
    is_first = first_is_left == asked_left
    truth = first if is_first else second
    return Turn(Family.LEFT_RIGHT, question, f"The {truth}.", truth, "which", "first" if is_first else "second")


def left_or_right(rng: Random, first: str, second: str, first_is_left: bool) -> Turn:
    """ "Is the cat to the left or to the right of the car?" """
    question = rng.choice(
        (
            f"Is the {first} to the left or to the right of the {second}?",
            f"Is the {first} left or right of the {second}?",
            f"On which side of the {second} is the {first}, left or right?",
        )
    )
    side = "left" if first_is_left else "right"
    return Turn(Family.LEFT_RIGHT, question, f"To the {side}.", side, "side", side)


def what_side(rng: Random, left: Kind, right: Kind, asked_left: bool) -> Turn:
    """ "What is on the left?" """
    side = "left" if asked_left else "right"
    question = rng.choice((f"What is on the {side}?", f"What do you see on the {side}?"))
    kind = left if asked_left else right
    return Turn(Family.LEFT_RIGHT, question, sentence(kind.indefinite), kind.name, "what", kind.name)


def shape(rng: Random, placed: Placed) -> Turn:
    question = rng.choice(("What shape is this?", "Which shape do you see?", "What shape is shown here?"))
    return Turn(Family.SHAPE, question, sentence(with_article(placed.name)), placed.name)


def shape_of_colour(rng: Random, placed: Placed) -> Turn:
    question = rng.choice(("What shape is {}?", "Which shape is {}?")).format(placed.colour)
    return Turn(Family.SHAPE, question, f"The {placed.name}.", placed.name)


def colour(rng: Random, placed: Placed) -> Turn:
    """The colour of a named shape; both spellings of the word are asked."""
    if placed.colour is None:
        raise ValueError(f"the {placed.name} has no known colour")
    question = rng.choice(("What colour is the {}?", "What color is the {}?", "Which color does the {} have?"))
    return Turn(Family.COLOUR, question.format(placed.name), sentence(placed.colour), placed.colour)


def reading(rng: Random, word: str) -> Turn:
    return Turn(Family.READING, rng.choice(READING), f'The word is "{word}".', word)


def word_check(rng: Random, asked: str, same: bool) -> Turn:
    answer, truth = yes_no(same)
    question = rng.choice(('Is the word "{}"?', 'Does it say "{}"?')).format(asked)
    return Turn(Family.YES_NO, question, answer, truth)


def spelling(rng: Random, word: str) -> Turn:
    return Turn(Family.SPELLING, rng.choice(SPELLING), "-".join(word), "-".join(word))


def letter(rng: Random, word: str, *, first: bool) -> Turn:
    end = "first" if first else "last"
    question = rng.choice((f"What is the {end} letter of the word?", f"Which letter comes {end}?"))
    truth = word[0] if first else word[-1]
    return Turn(Family.SPELLING, question, f'"{truth}".', truth)


def caption(rng: Random, text: str) -> Turn:
    return Turn(Family.CAPTION, rng.choice(CAPTION), sentence(text), "")


def description(rng: Random, text: str) -> Turn:
    return Turn(Family.DESCRIPTION, rng.choice(DESCRIPTION), text, "")
