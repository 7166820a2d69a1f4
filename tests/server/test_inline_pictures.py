"""Bodies with long data URLs are read as any parser would read them, however the pictures stand in them."""

from __future__ import annotations

import base64
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.body import parse_object
from server.protocol.errors import ApiError

LONG = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 1200).decode()
OTHER = LONG.replace("png", "jpeg")
_texts = st.sampled_from(
    ["", "a", LONG, OTHER, 'say "' + LONG, LONG + '"', "\\" + LONG, LONG + "\n", "é" + LONG, LONG[:-1]]
)
_trees = st.recursive(
    _texts | st.integers(0, 9) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(_texts, _trees, min_size=1, max_size=3))
def test_every_tree_comes_out_as_it_went_in(tree):
    padded = tree | {"padding": LONG}
    for body in (orjson.dumps(padded), json.dumps(padded).encode(), json.dumps(padded, indent=1).encode()):
        assert parse_object(body) == padded


@pytest.mark.parametrize(
    "body",
    [
        '{"a": "x"LONG""}',
        '{"a": "LONG}',
        '{"a": "LONG"',
        '{"a": "LONG" "b"}',
        '["LONG"]',
        '{"a": "LONG\n"}',
        '{"a": "LONG\0"}',
        '{"a": "LONG\\"}',
        '{"a": "LONG", "a": "LONG"}',
        '{"LONG": 1, "LONG": 1}',
        '{"a": "LONG", "b": {"c": 1, "c": 2}}',
        '{"a": "LONG", "b": NaN}',
    ],
)
def test_what_is_wrong_beside_or_in_a_picture_is_still_found(body):
    with pytest.raises(ApiError):
        parse_object(body.replace("LONG", LONG).encode())


def test_bytes_that_are_no_text_are_found_in_a_picture():
    with pytest.raises(ApiError):
        parse_object(b'{"a": "' + LONG.encode() + b'\xff"}')
