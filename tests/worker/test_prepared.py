"""An image is prepared once for all who ask at the same time, kept within the budget, and never when it failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from model.geometry import ImageLayout
from model.images import PreparedImage
from worker.prepared import PreparedImages

BYTES = 48  # of an image's pixels


class Kitchen:
    """Prepares images when it is told to, and counts how often."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.open = asyncio.Event()

    async def prepare(self, name: str) -> PreparedImage:
        self.made.append(name)
        await self.open.wait()
        if name == "broken":
            raise ValueError("broken")
        return PreparedImage(torch.zeros(1, 3, 2, 2), ImageLayout(1, 1, None, 1, 0, None, 4), name)

    async def get(self, images: PreparedImages, name: str, salt: str = "", several: bool = False) -> PreparedImage:
        return await images.get((salt, name, several), lambda: self.prepare(name))


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen()


async def test_all_who_ask_at_once_get_the_same_image(kitchen: Kitchen) -> None:
    images = PreparedImages(0)
    asking = [asyncio.create_task(kitchen.get(images, "a")) for _ in range(5)]
    await asyncio.sleep(0)
    kitchen.open.set()
    assert len({id(image) for image in await asyncio.gather(*asking)}) == 1
    assert kitchen.made == ["a"]
    await kitchen.get(images, "a")
    assert kitchen.made == ["a", "a"], "a budget of 0 keeps nothing"


async def test_who_leaves_takes_nothing_from_the_others(kitchen: Kitchen) -> None:
    images = PreparedImages(BYTES)
    first, second = (asyncio.create_task(kitchen.get(images, "a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    kitchen.open.set()
    assert (await second).digest == "a"
    assert first.cancelled()


async def test_the_image_used_longest_ago_goes_first(kitchen: Kitchen) -> None:
    images = PreparedImages(2 * BYTES)
    kitchen.open.set()
    for name in ("a", "b", "a", "c", "a", "b"):
        await kitchen.get(images, name)
    assert kitchen.made == ["a", "b", "c", "b"]
    assert images.kept_bytes == 2 * BYTES


async def test_a_failure_is_told_to_all_who_wait_and_tried_again_by_the_next(kitchen: Kitchen) -> None:
    images = PreparedImages(BYTES)
    asking = [asyncio.create_task(kitchen.get(images, "broken")) for _ in range(2)]
    await asyncio.sleep(0)
    kitchen.open.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(error) for error in found] == [ValueError, ValueError]
    with pytest.raises(ValueError, match="broken"):
        await kitchen.get(images, "broken")
    assert kitchen.made == ["broken", "broken"]


async def test_salts_and_layouts_keep_images_apart(kitchen: Kitchen) -> None:
    images = PreparedImages(8 * BYTES)
    kitchen.open.set()
    for salt, several in (("", False), ("tenant", False), ("", True), ("", False)):
        await kitchen.get(images, "a", salt, several)
    assert len(kitchen.made) == 3


def gauges(text: str) -> dict[str, float]:
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("tephra:"))
    return {name.partition("{")[0].removeprefix("tephra:"): float(value) for name, value in pairs}


async def test_what_is_kept_is_told_in_the_metrics(stage: Any, props: Any) -> None:
    worker = await stage(image_cache_bytes=2**20)
    shown = gauges((await worker.client.get("/metrics")).text)
    assert (shown["image_cache_bytes"], shown["image_cache_images"], shown["images_in_preparation"]) == (0, 0, 0)
    for color in ("teal", "red", "teal"):
        await worker.chat([{"type": "text", "text": "?"}, props.picture_part(color=color)])
    shown = gauges((await worker.client.get("/metrics")).text)
    assert shown["image_cache_images"] == 2
    assert 0 < shown["image_cache_bytes"] <= 2**20
    assert shown["images_in_preparation"] == 0
    assert (shown["feature_cache_bytes"], shown["feature_cache_images"], shown["features_held"]) == (0, 0, 0)
