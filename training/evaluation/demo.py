"""Evaluates the demo model through an OpenAI-compatible API: the table that the README quotes.

Scenes and backgrounds are held out from training; phrasings are those of training. Answers are greedy and short.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.evaluation.result import ChatSample, DemoEvaluation, FamilyResult, Mistake, Tally, majority
from training.evaluation.scoring import Scorer
from training.evaluation.tasks import Item, demo_tasks, items
from training.scenes.assets import require_all
from training.scenes.catalogue import drawn_catalogue, full_catalogue
from training.scenes.compose import Composer
from training.scenes.mix import MIXES

TILE = 112  # pixels per side of the demo's tile and base view
CHAT_PROMPTS = (
    "What is the capital of Italy?",
    "List three things that are good to eat for breakfast.",
    "Explain in two sentences why we sleep.",
    "Rewrite this politely: \"Open the window.\"",
    "Write one sentence about the sea.",
)  # fmt: skip

_MAX_TOKENS = 24
_CHAT_MAX_TOKENS = 96
_MISTAKES_KEPT = 8


class EvaluationError(RuntimeError):
    """The evaluation could not run at all."""


def evaluate_demo(
    base_url: str,
    api_key: str = "none",
    model: str | None = None,
    samples_per_family: int = 200,
    *,
    seed: int = 0,
    concurrency: int = 4,
    timeout: float = 120.0,
    tile: int = TILE,
    drawn_only: bool = False,
    cache_dir: Path | None = None,
    show_progress: bool = True,
) -> DemoEvaluation:
    """Ask a served model the demo's questions and score its answers.

    `base_url` is the API's root ("http://127.0.0.1:8000/v1"); `model` None takes the first model that it lists. Each
    question is asked twice, about its picture and about a black one. `timeout` (seconds) holds for each request; those
    that fail are counted apart. `drawn_only` evaluates on drawn shapes and needs no installed package. Raises
    EvaluationError when the API cannot be reached or lists no such model, MissingAssetError when a package is missing.
    """
    if samples_per_family < 1 or concurrency < 1:
        raise EvaluationError("samples_per_family and concurrency must be at least 1")
    if not drawn_only:
        require_all()
    catalogue = drawn_catalogue() if drawn_only else full_catalogue()
    composer = Composer(catalogue, "test", seed, MIXES["instruct"], cache_dir=cache_dir)
    run = _run(base_url, api_key, model, samples_per_family, composer, concurrency, timeout, tile, show_progress)
    return asyncio.run(run)


async def _run(
    base_url: str,
    api_key: str,
    model: str | None,
    samples: int,
    composer: Composer,
    concurrency: int,
    timeout: float,
    tile: int,
    show_progress: bool,
) -> DemoEvaluation:
    started = time.monotonic()
    scorer = Scorer(composer.catalogue)
    tasks = demo_tasks(tile)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key, timeout=timeout, max_retries=1) as client:
        model = await _choose_model(client, base_url, model)
        asker = _Asker(client, model, concurrency)
        families = []
        with Progress(*columns, disable=not show_progress) as progress:
            bar = progress.add_task("questions", total=2 * samples * len(tasks))
            for task in tasks:
                progress.update(bar, description=task.title)
                asked = await asyncio.to_thread(items, task, composer, samples)
                seen = await asker.ask_all(asked, lambda: progress.advance(bar))
                blind = await asker.ask_all([item.blind() for item in asked], lambda: progress.advance(bar))
                families.append(
                    FamilyResult(
                        name=task.name,
                        title=task.title,
                        score=_tally(asked, seen, scorer),
                        blind=_tally(asked, blind, scorer),
                        majority=majority([item.turn for item in asked]),
                        mistakes=_mistakes(asked, seen, scorer),
                    )
                )
        chat = tuple([ChatSample(prompt, await asker.chat(prompt)) for prompt in CHAT_PROMPTS])
    return DemoEvaluation(model, composer.seed, samples, tuple(families), chat, time.monotonic() - started)


async def _choose_model(client: openai.AsyncOpenAI, base_url: str, model: str | None) -> str:
    try:
        served = [entry.id for entry in (await client.models.list()).data]
    except openai.OpenAIError as error:
        raise EvaluationError(f"cannot list the models of {base_url}: {error}") from error
    if model is None and served:
        return served[0]
    if model not in served or model is None:
        raise EvaluationError(f"{base_url} does not serve {model or 'any model'}; it lists: {', '.join(served) or '-'}")
    return model


class _Asker:
    """Sends questions, at most `concurrency` at a time. An answer of None is a request that failed."""

    def __init__(self, client: openai.AsyncOpenAI, model: str, concurrency: int) -> None:
        self._client, self._model, self._slots = client, model, asyncio.Semaphore(concurrency)

    async def ask_all(self, asked: Sequence[Item], done: Any) -> list[str | None]:
        async def one(item: Item) -> str | None:
            async with self._slots:
                content = [
                    {"type": "image_url", "image_url": {"url": item.data_url()}},
                    {"type": "text", "text": item.turn.question},
                ]
                answer = await self._complete(content, _MAX_TOKENS)
            done()
            return answer

        return list(await asyncio.gather(*(one(item) for item in asked)))

    async def chat(self, prompt: str) -> str:
        answer = await self._complete(prompt, _CHAT_MAX_TOKENS)
        return "(the request failed)" if answer is None else answer

    async def _complete(self, content: Any, max_tokens: int) -> str | None:
        try:
            completion = await self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": content}],
                max_tokens=max_tokens,
                temperature=0,
            )
        except openai.OpenAIError:
            return None  # counted as a failed request
        return completion.choices[0].message.content or ""


def _tally(asked: Sequence[Item], answers: Sequence[str | None], scorer: Scorer) -> Tally:
    came = [(item, answer) for item, answer in zip(asked, answers, strict=True) if answer is not None]
    right = sum(scorer.right(item.turn, answer) for item, answer in came)
    return Tally(right, len(came), len(asked) - len(came))


def _mistakes(asked: Sequence[Item], answers: Sequence[str | None], scorer: Scorer) -> tuple[Mistake, ...]:
    wrong = [
        Mistake(item.turn.question, item.turn.truth, answer)
        for item, answer in zip(asked, answers, strict=True)
        if answer is not None and not scorer.right(item.turn, answer)
    ]
    return tuple(wrong[:_MISTAKES_KEPT])
