"""What a token costs here: seconds for one of a prompt and for one of an answer, measured over the engine's steps.

A step holds tokens of both kinds, so the costs come from least squares over the steps, in which older steps fade. The
vision tower's time counts towards the prompt tokens that the pictures are. A step in which the process stood still
(stopped, swapped out, its machine paused) says little about tokens, so none counts for more than a few times what its
tokens cost before; a worker that became slower shows it in step after step. Fed on the engine's thread, read on any.
"""

from __future__ import annotations

from dataclasses import dataclass

_MEMORY = 0.98  # weight of the past at each step: about fifty steps count
_MOST = 4.0  # times what a step should have taken by the costs so far, that it may count for


@dataclass(frozen=True)
class TokenSeconds:
    """0 where no token of the kind was seen yet."""

    prompt: float = 0.0
    answer: float = 0.0


class Pace:
    """Minimises the faded sum of (seconds - prompt cost * prompt tokens - answer cost * answer tokens)²."""

    def __init__(self) -> None:
        self._prompt_prompt = self._prompt_answer = self._answer_answer = 0.0
        self._prompt_seconds = self._answer_seconds = 0.0
        self.costs = TokenSeconds()

    def add(self, prompt_tokens: int, answer_tokens: int, seconds: float) -> None:
        """One step."""
        if not prompt_tokens and not answer_tokens:
            return
        seconds = min(seconds, self._most_seconds(prompt_tokens, answer_tokens))
        self._prompt_prompt = _MEMORY * self._prompt_prompt + prompt_tokens * prompt_tokens
        self._prompt_answer = _MEMORY * self._prompt_answer + prompt_tokens * answer_tokens
        self._answer_answer = _MEMORY * self._answer_answer + answer_tokens * answer_tokens
        self._prompt_seconds = _MEMORY * self._prompt_seconds + prompt_tokens * seconds
        self._answer_seconds = _MEMORY * self._answer_seconds + answer_tokens * seconds
        self.costs = self._solve()

    def _most_seconds(self, prompt_tokens: int, answer_tokens: int) -> float:
        costs = self.costs
        if (prompt_tokens and not costs.prompt) or (answer_tokens and not costs.answer):
            return float("inf")  # the first of their kind
        return _MOST * (costs.prompt * prompt_tokens + costs.answer * answer_tokens)

    def _solve(self) -> TokenSeconds:
        alone = TokenSeconds(
            self._prompt_seconds / self._prompt_prompt if self._prompt_prompt else 0.0,
            self._answer_seconds / self._answer_answer if self._answer_answer else 0.0,
        )
        full = self._prompt_prompt * self._answer_answer
        determinant = full - self._prompt_answer * self._prompt_answer
        if determinant <= 1e-6 * full:
            return alone  # one kind only, or always in the same proportion
        prompt = self._prompt_seconds * self._answer_answer - self._answer_seconds * self._prompt_answer
        answer = self._answer_seconds * self._prompt_prompt - self._prompt_seconds * self._prompt_answer
        if prompt <= 0 or answer <= 0:
            return alone
        return TokenSeconds(prompt / determinant, answer / determinant)
