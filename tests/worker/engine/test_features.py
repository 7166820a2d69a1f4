"""The vision-feature cache holds what is in use, keeps what fits its budget, and nothing that is not complete."""

import pytest
import torch

from model.geometry import ImageLayout
from model.images import PreparedImage
from worker.engine.features import FeatureCache, ImageFeatures

BYTES = 40  # of the features of each image


def image(name: str, tiles: int = 1) -> PreparedImage:
    return PreparedImage(torch.zeros(0), ImageLayout(1, 1, None, 1, tiles - 1, None, 10), name)


def encode(cache: FeatureCache, name: str, salt: str = "") -> ImageFeatures:
    features, _ = cache.acquire(image(name), salt)
    if features.merged is None:
        features.finish(torch.zeros(BYTES // 4))
    return features


def known(cache: FeatureCache, name: str, salt: str = "") -> bool:
    features, found = cache.acquire(image(name), salt)
    cache.release(features)
    return found


def test_the_image_used_longest_ago_goes_first() -> None:
    cache = FeatureCache(2 * BYTES)
    for name in ("a", "b"):
        cache.release(encode(cache, name))
    cache.release(encode(cache, "a"))
    cache.release(encode(cache, "c"))
    assert [known(cache, name) for name in ("a", "c")] == [True, True]
    assert not known(cache, "b")
    assert cache.kept_bytes == 2 * BYTES


def test_what_is_held_stays_whatever_the_budget() -> None:
    cache = FeatureCache(0)
    first = encode(cache, "a")
    assert cache.acquire(image("a"), "") == (first, True)
    cache.release(first)
    assert known(cache, "a"), "one holder is left"
    cache.release(first)
    assert not known(cache, "a")
    assert (len(cache), cache.kept_bytes) == (0, 0)


def test_pixels_go_when_the_features_are_there() -> None:
    features = encode(FeatureCache(BYTES), "a")
    assert features.image is None
    assert features.bytes == BYTES


def test_what_nobody_finished_is_not_kept() -> None:
    cache = FeatureCache(BYTES)
    features, _ = cache.acquire(image("a", tiles=3), "")
    features.encoded.append(torch.zeros(1))
    cache.release(features)
    assert len(cache) == 0
    again, found = cache.acquire(image("a", tiles=3), "")
    assert not found
    assert not again.encoded


def test_features_that_failed_are_begun_anew_by_who_asks_next() -> None:
    cache = FeatureCache(BYTES)
    broken, _ = cache.acquire(image("a"), "")
    cache.discard(broken)
    again, found = cache.acquire(image("a"), "")
    assert not found
    assert again is not broken
    cache.release(broken)
    assert known(cache, "a")


def test_salts_keep_tenants_apart() -> None:
    cache = FeatureCache(2 * BYTES)
    cache.release(encode(cache, "a", "one"))
    assert not known(cache, "a", "two")


def test_releasing_twice_is_an_error() -> None:
    cache = FeatureCache(BYTES)
    features = encode(cache, "a")
    cache.release(features)
    with pytest.raises(ValueError, match="twice"):
        cache.release(features)
