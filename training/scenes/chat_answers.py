"""Asks the base language model, through any OpenAI-compatible server, for the answers to our text-only prompts.

Training on a model's own words keeps it as it was (self-distillation). Answers are appended one line at a time, so that
a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from pathlib import Path

import httpx
from rich.progress import Progress

from training.scenes.chat import ChatFileError, ChatPrompt, chat_prompts, merge_chat

_CONCURRENT = 8
_SECONDS = 300.0  # for one answer
_SENTENCE_END = re.compile(r"[.!?:]['\")]?(?=\s|$)")


class ChatAnswerError(RuntimeError):
    """The server did not answer; the message says what it said."""


def answer_chat_prompts(base_url: str, model: str, out: Path, *, max_tokens: int = 96, api_key: str = "none") -> int:
    """Appends {"id", "turns", "answers"} lines to `out` for every prompt that has none yet; returns how many.

    `base_url` ends in /v1. An answer that is cut by `max_tokens` is shortened to its last whole sentence; one without a
    whole sentence is left out.
    """
    done = {json.loads(line)["id"] for line in out.read_text("utf-8").splitlines()} if out.exists() else set()
    pending = [prompt for prompt in chat_prompts() if not prompt.answers and prompt.id not in done]
    return asyncio.run(_answer_all(pending, base_url, model, out, max_tokens, api_key))


async def _answer_all(
    prompts: list[ChatPrompt], base_url: str, model: str, out: Path, max_tokens: int, api_key: str
) -> int:
    slots = asyncio.Semaphore(_CONCURRENT)
    written = 0
    headers = {"Authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=_SECONDS) as client:

        async def answer(prompt: ChatPrompt) -> ChatPrompt | None:
            async with slots:
                return await _converse(client, prompt, model, max_tokens)

        with Progress() as progress:
            task = progress.add_task("answers of the base model", total=len(prompts))
            for finished in asyncio.as_completed([answer(prompt) for prompt in prompts]):
                answered = await finished
                progress.advance(task)
                if answered is not None:
                    line = {"id": answered.id, "turns": answered.turns, "answers": answered.answers}
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    written += 1
    return written


async def _converse(client: httpx.AsyncClient, prompt: ChatPrompt, model: str, max_tokens: int) -> ChatPrompt | None:
    messages: list[dict[str, str]] = []
    answers: list[str] = []
    for turn in prompt.turns:
        messages.append({"role": "user", "content": turn})
        body = {
            "model": model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": max_tokens,
            "repetition_penalty": 1.1,
        }
        try:
            response = await client.post("/chat/completions", json=body)
        except httpx.HTTPError as error:
            raise ChatAnswerError(f"{client.base_url}: no answer ({error!r})") from error
        if response.status_code != httpx.codes.OK:
            raise ChatAnswerError(f"{client.base_url}: status {response.status_code}: {response.text[:200]}")
        choice = response.json()["choices"][0]
        text = _whole(choice["message"]["content"], cut=choice["finish_reason"] == "length")
        if not text:
            return None
        answers.append(text)
        messages.append({"role": "assistant", "content": text})
    return ChatPrompt(prompt.id, prompt.turns, tuple(answers))


def _whole(text: str, *, cut: bool) -> str:
    """`text`, shortened to its last whole sentence where the answer was cut off."""
    if not cut:
        return text.strip()
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.scenes.chat_answers", description=__doc__)
    parser.add_argument("--base-url", required=True, help="of the server that serves the base model, ending in /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines file; one that exists is continued")
    parser.add_argument("--merge-into", type=Path, help="a data set's JSON file that takes the conversations in")
    parser.add_argument("--copies", type=int, default=1, help="how often each conversation is merged")
    given = parser.parse_args()
    try:
        written = answer_chat_prompts(given.base_url, given.model, given.out)
        print(f"{written} conversations answered -> {given.out}")
        if given.merge_into is not None:
            added = merge_chat(given.merge_into, given.out, copies=given.copies)
            print(f"{added} rows merged into {given.merge_into}")
    except (ChatAnswerError, ChatFileError, OSError) as error:
        print(f"tephra: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
