"""Where pictures and fonts are found on this machine, and which package brings them when they are not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_FONT_SIZE = 109  # the one bitmap size that the font holds
CLIPART = Path("/usr/share/openclipart/png")
PHOTOS = Path("/usr/share/backgrounds/mate")
FONTS = Path("/usr/share/fonts/truetype")


class MissingAssetError(RuntimeError):
    """A source of pictures is not installed; the message names the Debian package that brings it."""

    def __init__(self, path: Path, package: str) -> None:
        super().__init__(f"{path} is missing: install it with `apt-get install {package}`")


@dataclass(frozen=True)
class Photo:
    """A background photo: `words` say what it shows, `split` is the only one that may use it."""

    path: Path
    words: str
    split: str

    @property
    def name(self) -> str:
        return self.path.stem


# Photos that show a kind of the catalogue (flowers, a ladybird) are left out: answers would no longer be true.
PHOTO_LIST: tuple[Photo, ...] = (
    Photo(PHOTOS / "nature/Aqua.jpg", "water", "train"),
    Photo(PHOTOS / "nature/Blinds.jpg", "a green plant", "train"),
    Photo(PHOTOS / "nature/Dune.jpg", "a dune by the sea", "train"),
    Photo(PHOTOS / "nature/RainDrops.jpg", "wet grass", "train"),
    Photo(PHOTOS / "nature/TwoWings.jpg", "a meadow", "train"),
    Photo(PHOTOS / "abstract/Elephants.jpg", "a blue painting", "train"),
    Photo(PHOTOS / "desktop/Ubuntu-Mate-Cold-no-logo.png", "green light", "train"),
    Photo(PHOTOS / "nature/GreenMeadow.jpg", "grass", "test"),
    Photo(PHOTOS / "nature/Storm.jpg", "a stormy sky", "test"),
    Photo(PHOTOS / "nature/Wood.jpg", "wood", "test"),
)

FONT_LIST: tuple[Path, ...] = (
    FONTS / "dejavu/DejaVuSans.ttf",
    FONTS / "dejavu/DejaVuSans-Bold.ttf",
    FONTS / "dejavu/DejaVuSerif.ttf",
    FONTS / "dejavu/DejaVuSerif-Bold.ttf",
    FONTS / "dejavu/DejaVuSansMono-Bold.ttf",
    FONTS / "liberation/LiberationSans-Regular.ttf",
    FONTS / "liberation/LiberationSans-Bold.ttf",
    FONTS / "liberation/LiberationSerif-Bold.ttf",
)


def require(path: Path) -> Path:
    """`path` itself, or a MissingAssetError that names its package."""
    if path.exists():
        return path
    text = str(path)
    if text.startswith(str(CLIPART)):
        package = "openclipart-png"
    elif text.startswith(str(PHOTOS)):
        package = "mate-backgrounds"
    elif "dejavu" in text:
        package = "fonts-dejavu-core"
    elif "liberation" in text:
        package = "fonts-liberation"
    else:
        package = "fonts-noto-color-emoji"
    raise MissingAssetError(path, package)


def require_all() -> None:
    """Check every package at once, before any work starts."""
    for path in (EMOJI_FONT, CLIPART, *(photo.path for photo in PHOTO_LIST), *FONT_LIST):
        require(path)
