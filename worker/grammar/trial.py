"""A process of its own that tries grammars before the worker takes them: `python -m worker.grammar.trial`.

Lines of JSON on stdin, a grammar each; for each a line on stdout: null, or why it cannot be taken. A grammar that is
too much for the parser's recursion ends this process and not the worker; one that takes too long can be killed with it.
The stack is much smaller than the worker's, so that what passes here passes there.
"""

from __future__ import annotations

import json
import random
import sys
import threading

from llguidance import LLMatcher, LLTokenizer

from worker.grammar.errors import plain
from worker.grammar.limits import LIMITS

READY = "ready"
_STACK_BYTES = 1 << 20
_MEMORY_BYTES = 2 << 30
_REHEARSALS = 4
_STEPS = 32  # of each


def try_grammar(grammar: str, tokenizer: LLTokenizer) -> str | None:
    """Compiles it and draws the beginnings of a few answers at random. Returns what went wrong, if anything did."""
    start = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if start.is_error():
        return plain(start.get_error())
    draws = random.Random(0)
    return next((wrong for _ in range(_REHEARSALS) if (wrong := _rehearse(start.deep_copy(), tokenizer, draws))), None)


def _rehearse(matcher: LLMatcher, tokenizer: LLTokenizer, draws: random.Random) -> str | None:
    for step in range(_STEPS):
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            return "nothing can follow it" if not step else plain(matcher.get_error())
        allowed = [token for token in range(tokenizer.vocab_size) if mask[token >> 3] >> (token & 7) & 1]
        if not allowed:
            return "no answer can have this form" if not step else "it comes to a place where nothing can follow"
        token = draws.choice(allowed)
        if token == tokenizer.eos_token:
            return None
        if not matcher.consume_token(token):
            return plain(matcher.get_error())
    return None


def _serve() -> None:
    tokenizer = LLTokenizer("byte")
    print(json.dumps(READY), flush=True)
    for line in sys.stdin:
        print(json.dumps(try_grammar(json.loads(line), tokenizer)), flush=True)


def main() -> None:
    _limit_memory()
    threading.stack_size(_STACK_BYTES)
    serving = threading.Thread(target=_serve)
    serving.start()
    serving.join()


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    except (ImportError, OSError, ValueError):
        pass  # a system that has no such limit


if __name__ == "__main__":
    main()
