"""`tephra data instruct`: instructions about pictures, written by a language model from captions and boxes.

Only the command line is here; the work is `training.data.instruct`, which is imported when the command runs.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.measuring import fail

if TYPE_CHECKING:
    from training.data.instruct.construct import Outcome
    from training.data.instruct.items import Items


class LimitField(StrEnum):
    MAX_TOKENS = "max_tokens"
    MAX_COMPLETION_TOKENS = "max_completion_tokens"


def instruct(
    out: Annotated[
        Path | None, typer.Option(help="Folder of journal, rows, rejects and report; the same one goes on.")
    ] = None,
    captions: Annotated[Path | None, typer.Option(help="COCO's captions_*.json.")] = None,
    instances: Annotated[Path | None, typer.Option(help="COCO's instances_*.json: the boxes.")] = None,
    items: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Instead of COCO: {image, captions, boxes}, one a line.")
    ] = None,
    url: Annotated[
        str, typer.Option(envvar="TEPHRA_INSTRUCT_URL", help="Any OpenAI-compatible server.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Default: the first that the server lists.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="TEPHRA_INSTRUCT_API_KEY", help="Better given by its environment name.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of all three kinds, 58:23:77. Default: as many as the pictures allow."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of which pictures, which paraphrase, where the picture stands.")
    ] = 0,
    prompts: Annotated[
        Path | None, typer.Option(help="Folder whose files replace our prompts of the same name.")
    ] = None,
    write_prompts: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write our prompts there, to be edited, and end.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests at once.")] = 16,
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="Most tokens, of prompts and answers, over all runs of the folder.")
    ] = None,
    money_budget: Annotated[float | None, typer.Option(min=0, help="Most money, at the prices given.")] = None,
    prompt_price: Annotated[float, typer.Option(min=0, help="Of a million prompt tokens.")] = 0.0,
    answer_price: Annotated[float, typer.Option(min=0, help="Of a million answer tokens.")] = 0.0,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: the likeliest answer.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=16, help="Longest answer.")] = 1024,
    limit_field: Annotated[LimitField, typer.Option(help="How the server calls the longest answer.")] = (
        LimitField.MAX_TOKENS
    ),
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request, to the last byte.")] = 300.0,
    attempts: Annotated[int, typer.Option(min=1, max=50, help="Of each request.")] = 6,
    first_wait: Annotated[float, typer.Option(min=0, help="Seconds after the first failure; doubles.")] = 1.0,
    spare: Annotated[
        float, typer.Option(min=0, max=10, help="Share of pictures beyond --rows that may replace rejected ones.")
    ] = 0.25,
) -> None:
    """Have a language model write conversations, descriptions and questions about pictures, from captions and boxes.

    Ctrl-C stops after the requests under way. The same command goes on where the last one ended, and pays for nothing
    that was answered. Exit code 0: all rows are there; 1: some are missing.
    """
    from rich.console import Console

    from training.data.errors import DataError
    from training.data.instruct.asking import Patience
    from training.data.instruct.budget import Limits, Prices
    from training.data.instruct.construct import Asked, construct
    from training.data.instruct.prompts import write_prompts as copy_prompts

    console = Console()
    prices = Prices(prompt_price, answer_price)
    try:
        if write_prompts is not None:
            copy_prompts(write_prompts)
            console.print(f"{write_prompts}: edit what you like, delete what shall stay ours, pass it as --prompts")
            return
        if out is None:
            fail("--out: name the folder of the results")
        if money_budget is not None and prices == Prices():
            fail("--money-budget needs --prompt-price and --answer-price")
        asked = Asked(
            out=out,
            url=url,
            model=model,
            api_key=api_key,
            total=rows,
            seed=seed,
            prompts=prompts,
            temperature=temperature,
            max_tokens=max_tokens,
            limit_field=limit_field.value,
            concurrency=concurrency,
            seconds=timeout,
            patience=Patience(attempts, first_wait),
            limits=Limits(token_budget, money_budget),
            prices=prices,
            spare=spare,
        )
        outcome = asyncio.run(construct(asked, _items(captions, instances, items), console))
    except (DataError, OSError) as error:
        fail(str(error))
    except (KeyboardInterrupt, asyncio.CancelledError):
        fail("given up; the same command goes on from the last answer that came")
    console.print(_told(outcome), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if outcome.complete else 1)


def _items(captions: Path | None, instances: Path | None, items: Path | None) -> Items:
    """Raises DataError."""
    from training.data.instruct.items import read_coco, read_rows

    if (captions is None) == (items is None):
        fail("name either --captions (and --instances) or --items")
    if items is not None:
        if instances is not None:
            fail("--instances goes with --captions; --items hold their boxes themselves")
        return read_rows(items)
    assert captions is not None
    return read_coco(captions, instances)


def _told(outcome: Outcome) -> str:
    lines = [
        f"{kind}: {tally.accepted} of {tally.target} rows, {len(tally.rejected)} rejected"
        + "".join(f", {count} {code}" for code, count in tally.codes.most_common())
        + (f"; {tally.unanswered} without an answer" if tally.unanswered else "")
        for kind, tally in outcome.tallies.items()
    ]
    lines.append(f"{outcome.spent.used.total} tokens in {outcome.spent.answers} answers; {outcome.report}")
    if outcome.stopped is not None:
        lines.append(f"Stopped: {outcome.stopped}. The same command goes on.")
    elif any(tally.unanswered for tally in outcome.tallies.values()):
        lines.append("Not complete: some requests got no answer. The same command asks again.")
    elif not outcome.complete:
        lines.append("Not complete: see rejects.jsonl; a larger --spare tries more pictures.")
    return "\n".join(lines)
