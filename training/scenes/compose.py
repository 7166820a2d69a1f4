"""Composes scenes: places cut-outs, shapes and words on backgrounds and says what is true of the result.

Scene i of a split is a function of (seed, split, i) and the mix alone; so is a scene asked for by layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageStat

from training.scenes import backgrounds, lettering, phrases
from training.scenes.backgrounds import Background
from training.scenes.catalogue import Catalogue, Kind
from training.scenes.mix import Mix, slot
from training.scenes.scene import Layout, Placed, Scene, Turn
from training.scenes.shapes import COLOURS, SHAPES, draw_shape
from training.scenes.sprites import SpriteLibrary
from training.scenes.wording import with_article
from training.scenes.words import words

Size = tuple[int, int]

PICTURE_SIZES: tuple[Size, ...] = ((224, 224),) * 8 + (
    (300, 200), (200, 300), (336, 224), (224, 336), (160, 160), (256, 192), (192, 256), (280, 280),
)  # fmt: skip
SMALL_PRINT_SIZES: tuple[Size, ...] = ((224, 224),) * 6 + ((336, 112),) * 2 + ((300, 200), (280, 210))

_PHOTO_SHARE = 0.4
_BACKGROUND_TRIES = 12
_CONTRAST = 60.0  # least distance of an object's mean colour from the background's
_SHAPE_CONTRAST = 110.0  # the same for flat shapes, whose colour is asked


class Composer:
    """Composes the scenes of one split."""

    def __init__(self, catalogue: Catalogue, split: str, seed: int, mix: Mix, *, cache_dir: Path | None = None) -> None:
        if split not in backgrounds.SPLITS:
            raise ValueError(f"unknown split {split!r}: use one of {', '.join(backgrounds.SPLITS)}")
        self.catalogue, self.split, self.seed, self.mix = catalogue, split, seed, mix
        self._sprites = SpriteLibrary(catalogue, cache_dir)
        self._photo_share = _PHOTO_SHARE if catalogue.photos else 0.0
        self._fonts = lettering.fonts(installed=catalogue.photos)

    def scene(self, index: int) -> Scene:
        """Scene `index` of the split under this composer's mix."""
        place = slot(self.seed, self.split, index, self.mix.proportions)
        return self._compose(Random(f"scene/{self.seed}/{self.split}/{index}"), place.layout, place.ordinal)

    def scene_of(self, layout: Layout, ordinal: int) -> Scene:
        """The `ordinal`-th scene of one layout, outside of any mix: what evaluation asks for."""
        return self._compose(Random(f"layout/{self.seed}/{self.split}/{layout}/{ordinal}"), layout, ordinal)

    def _compose(self, rng: Random, layout: Layout, ordinal: int) -> Scene:
        match layout:
            case Layout.SINGLE:
                return self._single(rng, ordinal)
            case Layout.PAIR | Layout.LEFT_RIGHT:
                return self._two(rng, ordinal, layout)
            case Layout.COUNTING:
                return self._counting(rng, ordinal)
            case Layout.SHAPES:
                return self._shapes(rng, ordinal)
            case Layout.READING | Layout.READING_UNSEEN | Layout.SMALL_PRINT:
                return self._printed(rng, ordinal, layout)

    # One object ------------------------------------------------------------------------------------------------------

    def _single(self, rng: Random, ordinal: int) -> Scene:
        asked, present, fits = rng.choice(self.catalogue.kinds), ordinal % 2 == 0, ordinal // 2 % 2 == 0
        kind = asked if present else rng.choice(self._unlike(asked))
        size = rng.choice(PICTURE_SIZES)
        side = rng.uniform(0.5, 0.88) * min(size)
        cut = self._cut_out(rng, kind, (round(side), round(side)), tilt=12)
        background = self._background(rng, size, [_mean_colour(cut)])
        placed = _paste(background.picture, cut, kind.name, rng, (0, 0, *size))
        other = kind.category if fits else self._other_category(rng, kind.category)
        turns = [
            phrases.naming(rng, kind.indefinite, kind.name),
            phrases.category(rng, kind, self.catalogue),
            *self._presence(rng, asked, present, [kind], self.catalogue.kinds),
            phrases.category_check(rng, self.catalogue.categories[other], fits),
            phrases.description(rng, f"The picture shows {kind.indefinite}. The background is {background.words}."),
        ]
        caption = phrases.caption(rng, f"{kind.indefinite} on {background.words}")
        return _scene(rng, Layout.SINGLE, background, [placed], turns, caption)

    # Two objects -----------------------------------------------------------------------------------------------------

    def _two(self, rng: Random, ordinal: int, layout: Layout) -> Scene:
        first_is_left, asked_left, present = ordinal % 2 == 0, ordinal // 2 % 2 == 0, ordinal // 4 % 2 == 0
        kinds = self.catalogue.countable if layout is Layout.LEFT_RIGHT else self.catalogue.kinds
        asked = rng.choice(kinds)
        first = asked if present else rng.choice(self._unlike(asked, among=kinds))
        second = rng.choice(self._unlike(first, asked, among=kinds))
        if rng.random() < 0.5:  # so that the kind asked about is as often mentioned first as second
            first, second = second, first
        left, right = (first, second) if first_is_left else (second, first)
        size = rng.choice([choice for choice in PICTURE_SIZES if choice[0] >= choice[1] * 0.75])
        half = size[0] // 2
        cuts = []
        for kind in (left, right):
            share = rng.uniform(0.72, 0.96)
            cuts.append(self._cut_out(rng, kind, (round(share * half), round(share * 0.85 * size[1])), tilt=8))
        background = self._background(rng, size, [_mean_colour(cut) for cut in cuts])
        placed = [
            _paste(background.picture, cuts[0], left.name, rng, (0, 0, half, size[1])),
            _paste(background.picture, cuts[1], right.name, rng, (half, 0, *size)),
        ]
        both = f"{left.indefinite} and {right.indefinite}"
        sides = [
            phrases.which_side(rng, first.name, second.name, first_is_left, asked_left),
            phrases.left_or_right(rng, first.name, second.name, first_is_left),
            phrases.what_side(rng, left, right, rng.random() < 0.5),
        ]
        rng.shuffle(sides)
        others = [
            phrases.naming(rng, both, f"{left.name}+{right.name}"),
            *self._presence(rng, asked, present, [left, right], kinds),
            phrases.description(
                rng,
                f"The picture shows {left.indefinite} on the left and {right.indefinite} on the right. "
                f"The background is {background.words}.",
            ),
        ]
        caption = phrases.caption(rng, f"{both} on {background.words}")
        if layout is Layout.PAIR:
            plain = [sides[0]] if left.countable and right.countable else []
            return _scene(rng, layout, background, placed, others + plain, caption)
        rng.shuffle(others)
        # The side is asked before other answers give it away.
        return _scene(rng, layout, background, placed, sides + others, caption, keep_first=True)

    # Counting --------------------------------------------------------------------------------------------------------

    def _counting(self, rng: Random, ordinal: int) -> Scene:
        count, present = ordinal % 4 + 1, ordinal // 4 % 2 == 0
        asked = rng.choice(self.catalogue.countable)
        kind = asked if present else rng.choice(self._unlike(asked, among=self.catalogue.countable))
        size = rng.choice(PICTURE_SIZES)
        variant, share = rng.randrange(kind.variants), rng.uniform(0.34, 0.46)
        boxes = _cells(rng, size, count)
        cuts = [
            self._sprites.cut_out(kind, variant, (round(share * size[0]), round(share * size[1])), rng, tilt=10)
            for _ in boxes
        ]
        background = self._background(rng, size, [_mean_colour(cuts[0])])
        placed = [_paste(background.picture, cut, kind.name, rng, box) for cut, box in zip(cuts, boxes, strict=True)]
        things = kind.indefinite if count == 1 else f"{phrases.NUMBERS[count]} {kind.plural}"
        turns = [
            phrases.counting(rng, kind.plural, count),
            phrases.naming(rng, things, kind.name),
            *self._presence(rng, asked, present, [kind], self.catalogue.countable),
            phrases.description(rng, f"The picture shows {things}. The background is {background.words}."),
        ]
        caption = phrases.caption(rng, f"{things} on {background.words}")
        return _scene(rng, Layout.COUNTING, background, placed, turns, caption)

    # Shapes ----------------------------------------------------------------------------------------------------------

    def _shapes(self, rng: Random, ordinal: int) -> Scene:
        present, count = ordinal % 2 == 0, ordinal // 2 % 2 + 1
        asked = (rng.choice(SHAPES), rng.choice(tuple(COLOURS)))
        names = rng.sample(SHAPES, count)
        colours = rng.sample(tuple(COLOURS), count)
        if present:
            names = [asked[0], *[name for name in names if name != asked[0]]][:count]
            colours = [asked[1], *[colour for colour in colours if colour != asked[1]]][:count]
        elif rng.random() < 0.5:  # near misses: the same shape, or the same colour, or neither
            names = [asked[0], *[name for name in names if name != asked[0]]][:count]
            colours = [colour for colour in rng.sample(tuple(COLOURS), count + 1) if colour != asked[1]][:count]
        else:
            names = [name for name in rng.sample(SHAPES, count + 1) if name != asked[0]][:count]
        pieces = list(zip(names, colours, strict=True))
        rng.shuffle(pieces)
        size = rng.choice(PICTURE_SIZES if count == 1 else [s for s in PICTURE_SIZES if s[0] >= s[1]])
        flat = [tuple(float(channel) for channel in COLOURS[colour]) for _, colour in pieces]
        background = self._background(rng, size, flat, shapes=True)
        placed = []
        for place, (name, colour) in enumerate(pieces):
            region = (place * size[0] // count, 0, (place + 1) * size[0] // count, size[1])
            side = rng.uniform(0.55, 0.88) * min(region[2] - region[0], size[1])
            cut = draw_shape(name, colour, round(side))
            placed.append(_paste(background.picture, cut, name, rng, region, colour=colour))
        things = " and ".join(with_article(f"{piece.colour} {piece.name}") for piece in placed)
        turns = [phrases.colour(rng, piece) for piece in placed]
        if count == 1:
            turns.append(phrases.shape(rng, placed[0]))
        else:
            turns.append(phrases.shape_of_colour(rng, rng.choice(placed)))
        turns += [
            phrases.presence(rng, with_article(f"{asked[1]} {asked[0]}"), present),
            phrases.naming(rng, things, "+".join(piece.name for piece in placed)),
            phrases.description(rng, f"The picture shows {things}. The background is {background.words}."),
        ]
        caption = phrases.caption(rng, f"{things} on {background.words}")
        return _scene(rng, Layout.SHAPES, background, placed, turns, caption)

    # Words -----------------------------------------------------------------------------------------------------------

    def _printed(self, rng: Random, ordinal: int, layout: Layout) -> Scene:
        same, held_out = ordinal % 2 == 0, layout is Layout.READING_UNSEEN
        pool = words(held_out=held_out, most_frequent=self.mix.most_frequent_words)
        asked = rng.choice(pool)
        other = rng.choice([w for w in rng.sample(pool, 2) if w != asked])
        word = asked if same else other
        font_file = rng.choice(self._fonts)
        small = layout is Layout.SMALL_PRINT
        size = rng.choice(SMALL_PRINT_SIZES if small else PICTURE_SIZES)
        dark = rng.random() < 0.3
        make = rng.choice((backgrounds.plain, backgrounds.gradient))
        background = make(rng, self.split, size, darkest=0 if dark else 175, lightest=70 if dark else 255)
        if small:
            font = lettering.font_for_height(font_file, rng.randint(10, 14))
        else:
            font = lettering.font_for_width(
                font_file, word, round(size[0] * rng.uniform(0.72, 0.94)), round(size[1] * 0.8)
            )
        ink = lettering.ink_for(rng, 40 if dark else 220)
        margin = 3
        region = (margin, margin, size[0] - margin, size[1] - margin)
        box, edges = lettering.print_word(background.picture, word, font, ink, rng, region)
        placed = Placed(word, box, edges=edges)
        turns = [
            phrases.reading(rng, word),
            phrases.spelling(rng, word),
            phrases.letter(rng, word, first=rng.random() < 0.5),
            phrases.word_check(rng, asked, same),
            phrases.word_check(rng, other, not same),
            phrases.description(rng, f'The picture shows the word "{word}". The background is {background.words}.'),
        ]
        caption = phrases.caption(rng, f'the word "{word}" on {background.words}')
        return _scene(rng, layout, background, [placed], turns, caption)

    # Parts -----------------------------------------------------------------------------------------------------------

    def _cut_out(self, rng: Random, kind: Kind, box: Size, *, tilt: float) -> Image.Image:
        return self._sprites.cut_out(kind, rng.randrange(kind.variants), box, rng, tilt=tilt)

    def _presence(
        self, rng: Random, asked: Kind, present: bool, shown: Sequence[Kind], among: Sequence[Kind]
    ) -> list[Turn]:
        """Whether `asked` is there, and the same of another kind with the other answer.

        Only the picture tells the two questions apart.
        """
        other = rng.choice(self._unlike(*shown, among=among) if present else list(shown))
        return [
            phrases.presence(rng, asked.indefinite, present),
            phrases.presence(rng, other.indefinite, not present),
        ]

    def _unlike(self, *kinds: Kind, among: Sequence[Kind] | None = None) -> list[Kind]:
        """Kinds (of `among`, or of all) that are none of `kinds` and that nobody would take for one of them."""
        taken = {kind.name for kind in kinds} | {name for kind in kinds for name in kind.similar}
        return [kind for kind in among or self.catalogue.kinds if kind.name not in taken]

    def _background(
        self, rng: Random, size: Size, colours: list[tuple[float, ...]], *, shapes: bool = False
    ) -> Background:
        """A background from which each of `colours` stands out, as far as some tries find one."""
        share = 0.0 if shapes else self._photo_share
        wanted = _SHAPE_CONTRAST if shapes or not self.catalogue.photos else _CONTRAST
        best, best_contrast = None, -1.0
        for _ in range(_BACKGROUND_TRIES):
            background = backgrounds.any_background(rng, self.split, size, photo_share=share)
            contrast = _contrast(background.picture, colours, everywhere=shapes)
            if contrast > best_contrast:
                best, best_contrast = background, contrast
            if contrast >= wanted:
                break
        assert best is not None
        return best

    @cached_property
    def _category_coupling(self) -> tuple[tuple[str, ...], np.ndarray]:
        """For each shown category, how often each *other* one is asked about.

        Chosen (Sinkhorn) such that a category is asked about equally often when the answer is no as when it is yes:
        the question alone tells nothing.
        """
        names = tuple(self.catalogue.categories)
        share = np.array([sum(kind.category == name for kind in self.catalogue.kinds) for name in names], dtype=float)
        share /= share.sum()
        joint = np.outer(share, share)
        np.fill_diagonal(joint, 0.0)
        for _ in range(300):
            joint *= (share / joint.sum(1))[:, None]
            joint *= share / joint.sum(0)
        return names, joint

    def _other_category(self, rng: Random, category: str) -> str:
        names, joint = self._category_coupling
        return rng.choices(names, weights=joint[names.index(category)].tolist())[0]


def _scene(
    rng: Random,
    layout: Layout,
    background: Background,
    placed: list[Placed],
    turns: list[Turn],
    caption: Turn,
    *,
    keep_first: bool = False,
) -> Scene:
    """Shuffle the turns: each family comes first now and then, with nothing but the picture to answer from."""
    ordered = list(turns)
    rng.shuffle(ordered)
    if keep_first:
        ordered.remove(turns[0])
        ordered.insert(0, turns[0])
    return Scene(background.picture, layout, background.name, tuple(placed), tuple(ordered), caption)


def _paste(
    picture: Image.Image,
    cut: Image.Image,
    name: str,
    rng: Random,
    region: tuple[int, int, int, int],
    *,
    colour: str | None = None,
) -> Placed:
    """Paste a cut-out at a random place inside `region`."""
    left = rng.randint(region[0], max(region[0], region[2] - cut.width))
    top = rng.randint(region[1], max(region[1], region[3] - cut.height))
    picture.paste(cut, (left, top), cut)
    return Placed(name, (left, top, left + cut.width, top + cut.height), colour)


def _cells(rng: Random, size: Size, count: int) -> list[tuple[int, int, int, int]]:
    """`count` of the four quarters of a picture, at random: objects inside different ones never touch."""
    half_width, half_height = size[0] // 2, size[1] // 2
    quarters = [(x, y, x + half_width, y + half_height) for x in (0, half_width) for y in (0, half_height)]
    return rng.sample(quarters, count)


def _mean_colour(cut: Image.Image) -> tuple[float, ...]:
    mask = cut.getchannel("A").point(lambda value: 255 if value > 128 else 0)
    return tuple(ImageStat.Stat(cut.convert("RGB"), mask).mean)


def _contrast(picture: Image.Image, colours: list[tuple[float, ...]], *, everywhere: bool) -> float:
    """The least distance of the colours from the picture's mean, or (`everywhere`) from any part of it."""
    cells = 4 if everywhere else 1
    small = picture.resize((cells, cells), Image.Resampling.BOX)
    parts = np.asarray(small, dtype=float).reshape(-1, 3)
    return float(min(np.linalg.norm(parts - np.array(colour), axis=1).min() for colour in colours))
