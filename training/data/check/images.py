"""Whether a picture opens: its header at least, in full where asked."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from model.errors import ImageError
from model.image_file import decode_rgb, read_header

_HEAD = 64 << 10  # bytes; most headers end before


class Pictures:
    """Pictures below a folder. The last ones' sizes are kept, as many rows speak of one picture."""

    def __init__(self, folder: Path, *, decode: bool) -> None:
        self._folder, self._decode = folder, decode
        self.size = lru_cache(maxsize=65536)(self._size)

    def _size(self, name: str) -> tuple[int, int] | str:
        """(width, height), or what is wrong with the picture."""
        file = self._folder / name
        try:
            with file.open("rb") as stream:
                head = stream.read(_HEAD)
                try:
                    header = read_header(head)
                except ImageError:
                    header = read_header(head := head + stream.read())
                if self._decode:
                    decode_rgb(head + stream.read())
        except FileNotFoundError:
            return "is not there"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        except ImageError as error:
            return f"does not open: {error}"
        return header.width, header.height
