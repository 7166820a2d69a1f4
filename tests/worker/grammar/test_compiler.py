"""Forms are compiled once, kept within bounds, given up when nobody waits; answers follow them token by token."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import Any

import jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.grammar.bounds import Bounds
from worker.grammar.errors import GrammarError
from worker.grammar.source import GrammarSource, read_structure

BOUNDS = Bounds()


def regex(expression: str) -> GrammarSource:
    return read_structure("regex", expression, BOUNDS)


class Counts:
    def __init__(self) -> None:
        self.found: list[bool] = []
        self.compiled = 0

    def grammar_found(self, cached: bool) -> None:
        self.found.append(cached)

    def grammar_compiled(self, seconds: float) -> None:
        self.compiled += 1


async def test_a_form_is_compiled_once_for_all_who_ask_at_once_and_after(bench: Any) -> None:
    counts = Counts()
    async with bench.compiler(counts) as compiler:
        first, *others = await asyncio.gather(*(compiler.compile(regex("a|b")) for _ in range(5)))
        assert all(other is first for other in others)
        assert await compiler.compile(regex("a|b")) is first
        assert (counts.compiled, counts.found) == (1, [False] * 5 + [True])


async def test_the_cache_is_bounded_in_number_and_bytes_and_the_oldest_goes_first(bench: Any) -> None:
    async with bench.compiler(cache_entries=3) as compiler:
        kept = [await compiler.compile(regex(f"a{number}")) for number in range(3)]
        assert await compiler.compile(regex("a0")) is kept[0]
        await compiler.compile(regex("a3"))
        assert compiler.cached == 3
        assert await compiler.compile(regex("a0")) is kept[0]
        assert await compiler.compile(regex("a1")) is not kept[1]
    async with bench.compiler(cache_bytes=300) as compiler:
        for number in range(20):
            await compiler.compile(regex("x" * 50 + str(number)))
            assert compiler.cached_bytes <= 300 and compiler.cached < 6
        await compiler.compile(regex("x" * 500))  # larger than all of it: answered, not kept
        assert compiler.cached == 0 == compiler.cached_bytes


async def test_when_one_of_two_leaves_the_other_still_gets_it_and_when_all_leave_it_is_given_up(bench: Any) -> None:
    async with bench.compiler() as compiler:
        slow = regex(".*" * 4000)
        leaving, staying = (asyncio.create_task(compiler.compile(slow)) for _ in range(2))
        await asyncio.sleep(0.05)
        leaving.cancel()
        assert isinstance((await asyncio.gather(staying, return_exceptions=True))[0], GrammarError)
        alone = asyncio.create_task(compiler.compile(slow))
        await asyncio.sleep(0.05)
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
        assert compiler.under_way == 0
        await compiler.compile(regex("ab"))


async def test_an_answer_begun_anew_begins_at_the_beginning_and_answers_do_not_share_their_state(bench: Any) -> None:
    async with bench.compiler() as compiler:
        grammar = await compiler.compile(regex("ab|cd"))
        one, other = grammar.matcher(), grammar.matcher()
        a, b, c, _ = bench.encode("abcd")
        assert bench.allowed(one, 0) == sorted([a, c])
        one.take(a)
        assert bench.allowed(one, 1) == [b]
        assert bench.allowed(one, 1) == [b]  # asked again: a preempted answer
        assert bench.allowed(other, 0) == sorted([a, c])
        assert bench.allowed(one, 0) == sorted([a, c])
        one.take(a)
        one.take(b)
        assert bench.allowed(one, 2) == [bench.end]


async def test_a_token_that_was_not_allowed_and_a_position_that_was_not_reached_fail_the_answer(bench: Any) -> None:
    async with bench.compiler() as compiler:
        grammar = await compiler.compile(regex("ab"))
        wrong, lost = grammar.matcher(), grammar.matcher()
        assert lost.allowed(3) is None and lost.failure
        assert (await compiler.compile(regex("ab"))) is not None
        wrong.take(bench.encode("z")[0])
        assert wrong.allowed(1) is None and wrong.failure
        assert await compiler.compile(regex("ab")) is not grammar  # what failed is not used again


async def test_an_answer_whose_next_token_is_not_found_in_time_fails_and_no_other(bench: Any) -> None:
    async with bench.compiler(threads=1, step_seconds=1.5) as compiler:
        grammar = await compiler.compile(regex("ab"))
        ready, late = grammar.matcher(), grammar.matcher()
        assert bench.allowed(ready, 0) == bench.encode("a") == bench.allowed(late, 0)
        busy = threading.Event()
        compiler._masks.submit(lambda: str(busy.wait(60)))  # something that takes its time
        late.take(bench.encode("a")[0])
        assert late.allowed(1) is None and "too long" in str(late.failure)
        busy.set()
        assert bench.allowed(ready, 0) == bench.encode("a")
        assert ready.failure is None


async def test_closing_ends_what_is_under_way(bench: Any) -> None:
    async with bench.compiler() as compiler:
        task = asyncio.create_task(compiler.compile(regex(".*" * 4000)))
        await asyncio.sleep(0.05)
    [ended] = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(ended, GrammarError | asyncio.CancelledError)


async def test_special_tokens_are_never_drawn_and_their_names_are_text(bench: Any) -> None:
    async with bench.compiler() as compiler:
        names = ["<|im_end|>", "<image>", "<|endoftext|>"]
        grammar = await compiler.compile(read_structure("choice", names, BOUNDS))
        assert {bench.draw(grammar, seed) for seed in range(30)} == set(names)
        numbered = await compiler.compile(read_structure("grammar", 'start: "a" <[256-257]>? /x?/', BOUNDS))
        matcher = numbered.matcher()
        assert bench.allowed(matcher, 0) == bench.encode("a")
        matcher.take(bench.encode("a")[0])
        assert set(bench.allowed(matcher, 1)) == {*bench.encode("x"), bench.end}


CHOICES = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=4)
SCALARS = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-99, 99),
        st.integers(0, 99),
    ),
    st.builds(lambda size: {"type": "string", "maxLength": size}, st.integers(0, 5)),
    st.builds(lambda values: {"enum": values}, CHOICES),
    st.builds(lambda value: {"const": value}, st.one_of(st.text(max_size=5), st.integers(-9, 9), st.none())),
)


def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["a", "b c", 'd"', "é", "$ref"])
    return st.one_of(
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 2)),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda properties, needed: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties)[:needed],
                "additionalProperties": False,
            },
            st.dictionaries(names, inner, max_size=3),
            st.integers(0, 3),
        ),
    )


async def _drawn(bench: Any, source: GrammarSource, seeds: range) -> list[str | None]:
    async with bench.compiler() as compiler:
        grammar = await compiler.compile(source)
        return [bench.draw(grammar, seed) for seed in seeds]


@given(schema=st.recursive(SCALARS, deeper, max_leaves=5))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_drawn_under_a_schema_is_valid_by_it(bench: Any, schema: dict[str, Any]) -> None:
    answers = asyncio.run(_drawn(bench, read_structure("json_schema", schema, BOUNDS), range(5)))
    for answer in answers:
        assert answer is not None
        jsonschema.validate(json.loads(answer), schema)


@given(choices=CHOICES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_choices_one_of_them_is_drawn_letter_for_letter(bench: Any, choices: list[str]) -> None:
    answers = asyncio.run(_drawn(bench, read_structure("choice", choices, BOUNDS), range(4)))
    assert set(answers) <= set(choices)


async def test_expressions_mean_what_python_means_by_them(bench: Any) -> None:
    async with bench.compiler() as compiler:
        for expression in ("^ab?$", r"a/b\/c", r"\$", r"a\\$", '"[^"]{2}"', "x\ny", "[/]{2}", "(?i)ab", "a{2,3}|b"):
            grammar = await compiler.compile(regex(expression))
            for seed in range(5):
                answer = bench.draw(grammar, seed)
                assert answer is not None and re.fullmatch(expression, answer), (expression, answer)
