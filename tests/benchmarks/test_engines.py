"""How engines are named on the command line, and what is started for them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.engines import Engine, Limit, command, environment, parse_engines, with_limits


def test_kinds_labels_arguments_and_environment_are_told_apart() -> None:
    found = parse_engines("tephra,tephra:int8=--quantization int8 --x a,b, vllm:one=A_B=0 C=1=2 --y 'z w',transformers")
    assert found == (
        Engine("tephra", "tephra"),
        Engine("tephra:int8", "tephra", ("--quantization", "int8", "--x", "a,b")),
        Engine("vllm:one", "vllm", ("--y", "z w"), (("A_B", "0"), ("C", "1=2"))),
        Engine("transformers", "transformers"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [("sglang", "expected KIND"), ("", "expected KIND"), ("vllm,vllm", "vllm comes twice"), ("tephra:a b", "expected")],
)
def test_what_is_no_engine_is_refused_with_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_engines(text)


def test_slow_engines_are_held_to_few_requests_at_once() -> None:
    engines = parse_engines("tephra,vllm:one=A=1,transformers")
    assert with_limits(engines, "") == engines
    ours, one, slow = with_limits(engines, "vllm:one=8, transformers=1:3")
    assert (ours.limit, one.limit, slow.limit) == (None, Limit(8), Limit(1, 3))


@pytest.mark.parametrize(
    ("text", "words"), [("transformers", "expected ENGINE="), ("transformers=0", "expected"), ("x=1", "called x")]
)
def test_what_is_no_limit_is_refused_with_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_limits(parse_engines("tephra,transformers"), text)


def test_every_engine_serves_the_same_checkpoint_in_the_same_dtype_under_the_same_name() -> None:
    for engine in parse_engines("tephra:a=--threads 1,vllm,transformers"):
        started = command(engine, Path("/c"), 1234, "bfloat16", "/vllm/python")
        words = " ".join(started)
        assert "--model /c" in words and "--dtype bfloat16" in words and "--port 1234" in words
        assert any(f"{flag} m" in words for flag in ("--served-name", "--served-model-name"))
        assert started[0] == ("/vllm/python" if engine.kind == "vllm" else sys.executable)
        assert started[-len(engine.arguments) :] == engine.arguments or not engine.arguments


def test_vllm_gets_every_core_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.engines.processors", lambda: [0, 1, 2, 3])
    monkeypatch.setenv("TEPHRA_MODEL", "of-another-system")
    best, one = parse_engines("vllm,vllm:one=VLLM_CPU_OMP_THREADS_BIND=0")
    assert environment(best)["VLLM_CPU_OMP_THREADS_BIND"] == "0-3"
    assert environment(best)["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert environment(one)["VLLM_CPU_OMP_THREADS_BIND"] == "0"
    assert "TEPHRA_MODEL" not in environment(best)
