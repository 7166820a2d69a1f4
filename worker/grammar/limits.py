"""llguidance's own limits, the same in the trial as in the worker, so that the one foretells the other.

Fuel is work, not time: 50,000 are some milliseconds of one step.
"""

from __future__ import annotations

from llguidance import LLParserLimits

LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=50_000,  # some 200 bytes each
    max_grammar_size=200_000,
    verbose_errors=False,  # else messages hold the whole grammar
)
