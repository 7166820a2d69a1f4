"""The demo's questions: which scenes each family of the table is asked about, and how a picture is sent."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from training.scenes.compose import Composer
from training.scenes.scene import Family, Layout, Turn


@dataclass(frozen=True)
class Task:
    """A row of the table. `squash` sends every picture at this width and height instead of its own."""

    name: str
    title: str
    layout: Layout
    family: Family
    squash: tuple[int, int] | None = None


@dataclass(frozen=True)
class Item:
    """One question about one picture (as it is sent)."""

    picture: Image.Image
    turn: Turn

    def blind(self) -> Item:
        """The same question about a black picture of the same size."""
        return Item(Image.new("RGB", self.picture.size), self.turn)

    def data_url(self) -> str:
        buffer = io.BytesIO()
        self.picture.save(buffer, "PNG", compress_level=1)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def demo_tasks(tile: int) -> tuple[Task, ...]:
    """The demo's table. `tile` is the side of the model's tile: a picture squashed to it has no detail for AnyRes."""
    return (
        Task("naming", "Naming", Layout.SINGLE, Family.NAMING),
        Task("category", "Category", Layout.SINGLE, Family.CATEGORY),
        Task("yes_no", "Yes or no", Layout.SINGLE, Family.YES_NO),
        Task("left_right", "Left or right", Layout.LEFT_RIGHT, Family.LEFT_RIGHT),
        Task("counting", "Counting 1-4", Layout.COUNTING, Family.COUNTING),
        Task("reading", "Reading, words seen in training", Layout.READING, Family.READING),
        Task("reading_unseen", "Reading, unseen words", Layout.READING_UNSEEN, Family.READING),
        Task("small_print", "Small print, AnyRes on", Layout.SMALL_PRINT, Family.READING),
        Task("small_print_squashed", "Small print, AnyRes off", Layout.SMALL_PRINT, Family.READING, (tile, tile)),
    )


def _chosen(turns: list[Turn], ordinal: int) -> Turn:
    """The first of a scene's turns; of yes/no questions alternately one with each answer."""
    if turns[0].family is Family.YES_NO:
        return sorted(turns, key=lambda turn: turn.truth)[ordinal % len(turns)]
    return turns[0]


def items(task: Task, composer: Composer, count: int) -> list[Item]:
    """The first `count` questions of a task."""
    chosen = []
    for ordinal in range(count):
        scene = composer.scene_of(task.layout, ordinal)
        turn = _chosen([turn for turn in scene.turns if turn.family is task.family], ordinal)
        picture = scene.picture
        if task.squash is not None:
            picture = picture.resize(task.squash, Image.Resampling.BICUBIC)
        chosen.append(Item(picture, turn))
    return chosen
