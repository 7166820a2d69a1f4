"""Calls are read the same however the text was cut."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from worker.answers.tool_calls import CallArguments, CallBegins, CallReader, ForcedCalls, TaggedCalls, Words

NAMES = ["look", "look_up", "x-1"]
VALUES = st.recursive(
    st.one_of(
        st.text(max_size=6), st.integers(-9, 9), st.none(), st.sampled_from(['"', "}", "{", "\\", "</tool_call>"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=4), VALUES, max_size=3)), min_size=1, max_size=3
)


def read(reader: CallReader, text: str, cuts: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """(words, calls) of a text that arrives in pieces."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    words, calls = "", []
    for begin, end in itertools.pairwise(places):
        for event in reader.feed(text[begin:end], last=end == len(text)):
            match event:
                case Words(more):
                    words += more
                case CallBegins(index, _, name):
                    assert index == len(calls)
                    calls.append((name, ""))
                case CallArguments(index, more):
                    assert index == len(calls) - 1
                    calls[index] = (calls[index][0], calls[index][1] + more)
    return words, calls


@given(calls=CALLS, cuts=st.lists(st.integers(0, 500), max_size=12), tagged=st.booleans())
def test_forced_calls_are_read_whatever_their_arguments_hold(
    calls: list[tuple[str, dict[str, object]]], cuts: list[int], tagged: bool
) -> None:
    dumped = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    said = [f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in dumped]
    text = "\n".join(f"<tool_call>\n{one}\n</tool_call>" if tagged else one for one in said)
    reader = ForcedCalls()
    assert read(reader, text, cuts) == ("", dumped)
    assert reader.calls == len(calls)


@given(
    calls=st.lists(
        st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text("ab", max_size=3), st.integers(), max_size=2)),
        max_size=3,
    ),
    words=st.text("<tol_ca> x", max_size=12),
    cuts=st.lists(st.integers(0, 500), max_size=12),
)
def test_tagged_calls_are_read_the_same_however_the_text_is_cut(
    calls: list[tuple[str, dict[str, int]]], words: str, cuts: list[int]
) -> None:
    blocks = [
        f'<tool_call>{{"arguments": {json.dumps(arguments)}, "name": "{name}"}}</tool_call>'
        for name, arguments in calls
    ]
    text = words + "".join(blocks)
    expected = (words, [(name, json.dumps(arguments)) for name, arguments in calls])
    assert read(TaggedCalls(NAMES, several=True), text, cuts) == expected
    assert read(TaggedCalls(NAMES, several=True), text, []) == expected
