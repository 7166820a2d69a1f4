"""Cut-outs: each variant of each kind rendered once, kept at three sizes, in memory and in a cache folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from training.scenes.assets import CLIPART, EMOJI_FONT, EMOJI_FONT_SIZE, require
from training.scenes.catalogue import Catalogue, Kind
from training.scenes.shapes import draw_shape

SIZES = (64, 128, 256)  # longer side of the stored renderings

_FAINT = 24  # alpha below which a pixel does not count as part of the object


def default_cache_dir() -> Path:
    """`$TEPHRA_CACHE`, or `$XDG_CACHE_HOME/tephra`, or `~/.cache/tephra`; a folder in it."""
    if chosen := os.environ.get("TEPHRA_CACHE"):
        return Path(chosen) / "scenes"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tephra" / "scenes"


class SpriteLibrary:
    """Gives cut-outs of a catalogue's kinds. Safe to share a cache folder between processes."""

    def __init__(self, catalogue: Catalogue, cache_dir: Path | None = None) -> None:
        self.catalogue = catalogue
        self._folder = (cache_dir or default_cache_dir()) / catalogue.digest
        self._held: dict[tuple[str, int, int], Image.Image] = {}  # bounded by the catalogue: kinds x variants x sizes

    def sprite(self, kind: Kind, variant: int, side: int) -> Image.Image:
        """The smallest stored rendering of at least `side` pixels (or the largest), RGBA, tightly cropped."""
        size = next((s for s in SIZES if s >= side), SIZES[-1])
        key = (kind.name, variant, size)
        if key not in self._held:
            self._held[key] = self._load(kind, variant, size)
        return self._held[key]

    def cut_out(self, kind: Kind, variant: int, box: tuple[int, int], rng: Random, *, tilt: float) -> Image.Image:
        """One augmented cut-out that fills `box` (width, height) as far as its proportions let it.

        It may be mirrored, turned by up to `tilt` degrees, and made a little lighter or darker.
        """
        picture = self.sprite(kind, variant, max(box))
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if tilt:
            picture = _crop(picture.rotate(rng.uniform(-tilt, tilt), Image.Resampling.BICUBIC, expand=True))
        scale = min(box[0] / picture.width, box[1] / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        if kind.drawn:
            return picture  # a drawn shape's colour is an answer: leave it exact
        alpha = picture.getchannel("A")
        picture = ImageEnhance.Brightness(picture.convert("RGB")).enhance(rng.uniform(0.85, 1.15))
        picture.putalpha(alpha)
        return picture

    def _load(self, kind: Kind, variant: int, size: int) -> Image.Image:
        path = self._folder / f"{kind.name.replace(' ', '-')}-{variant}-{size}.png"
        if path.exists():
            return Image.open(path).convert("RGBA")
        picture = _fit(_crop(_render(kind, variant)), size)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            picture.save(part, "PNG")
        os.replace(part.name, path)
        return picture


def _render(kind: Kind, variant: int) -> Image.Image:
    if variant < len(kind.emoji):
        return _render_emoji(kind.emoji[variant])
    variant -= len(kind.emoji)
    if variant < len(kind.clipart):
        return Image.open(require(CLIPART / f"{kind.clipart[variant]}.png")).convert("RGBA")
    shape, colour = kind.drawn[variant - len(kind.clipart)]
    return draw_shape(shape, colour, SIZES[-1])


def _render_emoji(character: str) -> Image.Image:
    font = ImageFont.truetype(str(require(EMOJI_FONT)), EMOJI_FONT_SIZE)
    picture = Image.new("RGBA", (180, 180), (0, 0, 0, 0))
    ImageDraw.Draw(picture).text((16, 16), character, font=font, embedded_color=True)
    return picture


def _crop(picture: Image.Image) -> Image.Image:
    box = picture.getchannel("A").point(lambda value: 255 if value >= _FAINT else 0).getbbox()
    if box is None:
        raise ValueError("a cut-out is empty")
    return picture.crop(box)


def _fit(picture: Image.Image, size: int) -> Image.Image:
    scale = size / max(picture.size)
    target = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(target, Image.Resampling.LANCZOS)
