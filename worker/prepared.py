"""Images that were decoded and laid out lately, so that a picture asked about again, or by many at once, costs nothing.

An image that is being prepared for one request is waited for by the others. What was prepared stays within a budget of
bytes; the image used longest ago goes first. An image that failed is not remembered. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from model.images import PreparedImage

Key = tuple[str, str, bool]  # the tenant's salt, the image's digest, whether it stands among several


class PreparedImages:
    """`budget` bytes of pixels may be kept; 0 keeps none, and still prepares an image once for all who wait for it."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: OrderedDict[Key, PreparedImage] = OrderedDict()
        self._under_way: dict[Key, asyncio.Task[PreparedImage]] = {}
        self.kept_bytes = 0

    @property
    def kept(self) -> int:
        """Images that may be asked about again."""
        return len(self._kept)

    @property
    def under_way(self) -> int:
        """Images that are being prepared now."""
        return len(self._under_way)

    async def get(self, key: Key, prepare: Callable[[], Awaitable[PreparedImage]]) -> PreparedImage:
        """The image under this name, prepared now if it has to be. Raises what `prepare` raises.

        One who stops waiting does not stop the others' image.
        """
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(self._prepare(key, prepare))
            task.add_done_callback(_retrieve)
        return await asyncio.shield(task)

    async def _prepare(self, key: Key, prepare: Callable[[], Awaitable[PreparedImage]]) -> PreparedImage:
        try:
            image = await prepare()
        finally:
            del self._under_way[key]
        size = _bytes(image)
        if size <= self._budget:
            self._kept[key] = image
            self.kept_bytes += size
            while self.kept_bytes > self._budget:
                self.kept_bytes -= _bytes(self._kept.popitem(last=False)[1])
        return image


def _bytes(image: PreparedImage) -> int:
    return image.pixels.numel() * image.pixels.element_size()


def _retrieve(task: asyncio.Task[PreparedImage]) -> None:
    """Takes note of an error that nobody may be left to hear of, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
