"""The vision-feature cache: what the vision tower and connector made of an image, kept for the next who asks.

An image that several requests ask about at once is encoded once: all of them hold the same `ImageFeatures`, whichever
step computes its tiles. What nobody holds stays within a budget of bytes, and the one used longest ago goes first. Keys
are the image's digest and the tenant's salt; the weights and the preprocessing behind the features are the cache's
owner's to keep the same.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from model.images import PreparedImage


@dataclass(eq=False)
class ImageFeatures:
    """One image's features on their way: tiles are planned, encoded, and at last merged into [layout.tokens, D]."""

    key: tuple[str, str]
    image: PreparedImage | None  # None once the features are there: nobody needs the pixels any more
    tiles: int
    planned: int = 0  # tiles that have been encoded or are about to be, in the step at hand
    encoded: list[torch.Tensor] = field(default_factory=list)  # [n, tokens, D] each
    merged: torch.Tensor | None = None
    holders: int = 0

    @property
    def bytes(self) -> int:
        tensors = self.encoded if self.merged is None else [self.merged]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def finish(self, merged: torch.Tensor) -> None:
        """Takes the finished features [layout.tokens, D]."""
        self.merged = merged
        self.image = None
        self.encoded.clear()


class FeatureCache:
    """`budget` bytes may be kept for images that no sequence holds; 0 keeps none. One thread's alone."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: dict[tuple[str, str], ImageFeatures] = {}
        self._kept: OrderedDict[tuple[str, str], ImageFeatures] = OrderedDict()  # complete, and held by nobody
        self.kept_bytes = 0

    def __len__(self) -> int:
        """Images that are held or kept."""
        return len(self._entries)

    @property
    def kept(self) -> int:
        """Images that nobody holds."""
        return len(self._kept)

    def held(self) -> list[ImageFeatures]:
        """What is not kept for nobody: features that sequences hold, complete or on their way."""
        return [features for key, features in self._entries.items() if key not in self._kept]

    def acquire(self, image: PreparedImage, salt: str) -> tuple[ImageFeatures, bool]:
        """The image's features, to be released again; and whether somebody had asked for them before."""
        key = (salt, image.digest)
        features = self._entries.get(key)
        known = features is not None
        if features is None:
            features = self._entries[key] = ImageFeatures(key, image, image.layout.tiles)
        if self._kept.pop(key, None) is not None:
            self.kept_bytes -= features.bytes
        features.holders += 1
        return features, known

    def release(self, features: ImageFeatures) -> None:
        """One holder less. Raises ValueError if nobody holds them."""
        if not features.holders:
            raise ValueError("image features were released twice")
        features.holders -= 1
        if features.holders or self._entries.get(features.key) is not features:
            return
        if features.merged is None or features.bytes > self.budget:
            del self._entries[features.key]
            return
        self._kept[features.key] = features
        self.kept_bytes += features.bytes
        while self.kept_bytes > self.budget:
            key, oldest = self._kept.popitem(last=False)
            self.kept_bytes -= oldest.bytes
            del self._entries[key]

    def discard(self, features: ImageFeatures) -> None:
        """Forgets features that could not be computed: who asks again starts anew."""
        if self._entries.get(features.key) is features:
            del self._entries[features.key]
