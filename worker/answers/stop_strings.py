"""Finds stop strings in text that arrives in pieces, and holds back only what could be the beginning of one.

The result does not depend on how the text was cut: the stop that is complete first ends the text; of those complete at
the same character, the longest. Each stop string has its own Knuth-Morris-Pratt automaton, so a character costs
constant time for each of them whatever the text.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """A scanner for one text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._automata = [_Automaton(stop) for stop in stops]
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Takes more text; gives what may be released now and whether a stop string was found (then it is the end)."""
        if not self._automata:
            return text, False
        seen = self._held + text
        for place, character in enumerate(text, start=len(self._held) + 1):
            matched = 0
            for automaton in self._automata:
                if automaton.step(character):
                    matched = max(matched, automaton.length)
            if matched:
                self._held = ""
                return seen[: place - matched], True
        holding = max(automaton.matched for automaton in self._automata)
        self._held = seen[len(seen) - holding :]
        return seen[: len(seen) - holding], False

    def flush(self) -> str:
        """The text that was held back, when no more can come."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """How much of one stop string the text read so far ends with."""

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self.length = len(stop)
        self.matched = 0
        self._fallback = [0] * len(stop)  # [i]: longest proper border of stop[: i + 1]
        border = 0
        for place in range(1, len(stop)):
            while border and stop[place] != stop[border]:
                border = self._fallback[border - 1]
            border += stop[place] == stop[border]
            self._fallback[place] = border

    def step(self, character: str) -> bool:
        """Reads one character; True when the stop string is complete."""
        while self.matched and self._stop[self.matched] != character:
            self.matched = self._fallback[self.matched - 1]
        self.matched += self._stop[self.matched] == character
        return self.matched == self.length
