"""A contact sheet of scenes with their questions and answers: for a person to see what the model will see."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from training.scenes.scene import Scene

_CELL = (340, 420)
_PICTURE = 224


def contact_sheet(scenes: Sequence[Scene], *, across: int = 4) -> Image.Image:
    """A sheet of `scenes`, `across` to a row, pictures at most 224 pixels wide, conversations below."""
    rows = -(-len(scenes) // across)
    sheet = Image.new("RGB", (across * _CELL[0], rows * _CELL[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, scene in enumerate(scenes):
        left, top = place % across * _CELL[0] + 4, place // across * _CELL[1] + 4
        picture = scene.picture.copy()
        picture.thumbnail((_PICTURE, _PICTURE))
        sheet.paste(picture, (left, top))
        lines = [f"[{scene.layout}] {scene.caption.answer}"]
        lines += [f"{turn.question} {turn.answer}" for turn in scene.turns]
        wrapped = "\n".join(part for line in lines for part in textwrap.wrap(line, 56))
        draw.multiline_text((left, top + _PICTURE + 4), wrapped, fill="black", font=font, spacing=2)
    return sheet
