"""`tephra checkpoint import | export | quantize | verify | inspect`: checkpoints in, out, and looked at.

Only the command line is here: what is printed, and with which exit code. Everything else is `model.checkpoint`, which
is imported when a command runs, so that --help never waits for torch.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from model.checkpoint.original_summary import OriginalSummary
    from model.checkpoint.plan import CheckpointPlan
    from model.checkpoint.summary import PartSummary, Summary

app = typer.Typer(help="Bring checkpoints in, give them out, and look at them.", no_args_is_help=True)

_GB = 10**9


class DtypeName(StrEnum):
    KEEP = "keep"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Layout(StrEnum):
    HF = "hf"
    ORIGINAL = "original"


class Engine(StrEnum):
    ANY = "any"
    NATIVE = "native"


Source = Annotated[Path, typer.Argument(help="The checkpoint's directory.")]
Target = Annotated[Path, typer.Argument(help="The directory to write; it must not exist.")]
Dtype = Annotated[DtypeName, typer.Option(help="What the weights are written as; by default as they are.")]
Template = Annotated[
    str | None,
    typer.Option(help="A chat template by name (plain, v0, v1, mistral, chatml, qwen_1_5, llama_3), or a file."),
]
ShardSize = Annotated[float, typer.Option(min=0.001, help="Most gigabytes in one file.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")]


@app.command("import")
def import_(
    source: Source,
    target: Target,
    base: Annotated[
        Path | None, typer.Option(help="The model under a projector, a LoRA adapter or a delta: its directory.")
    ] = None,
    delta: Annotated[bool, typer.Option("--delta", help="Add the source's weights to those of --base.")] = False,
    vision_tower: Annotated[
        Path | None,
        typer.Option(
            help="The directory of the CLIP or SigLIP checkpoint where the source lacks it, or of a LLaVA with it."
        ),
    ] = None,
    generation: Annotated[
        str | None,
        typer.Option(
            help="Treat images as this generation does: llava-1.0, llava-1.5, llava-1.5-hd, llava-next-2024-01 or "
            "llava-next-2024-05. By default what the configuration tells; it cannot tell 1.5-HD."
        ),
    ] = None,
    template: Template = None,
    dtype: Dtype = DtypeName.KEEP,
    shard_gb: ShardSize = 5.0,
) -> None:
    """Turn anyone's LLaVA, original or Hugging Face layout, into one that Tephra, transformers and vLLM load."""
    with _told() as console:
        from model.checkpoint.importing import ImportOptions, plan_import
        from model.checkpoint.plan import write_checkpoint

        options = ImportOptions(base, delta, vision_tower, generation, template, _torch_dtype(dtype))
        plan = plan_import(source, options)
        console.print(f"{source}: {plan.layout}, {plan.parameters:,} parameters", highlight=False, soft_wrap=True)
        _print_facts(_chosen(plan), console)
        with byte_bar(console) as progress:
            write_checkpoint(plan, target, shard_bytes=int(shard_gb * _GB), progress=progress)
        for note in plan.notes:
            console.print(note, style="yellow", soft_wrap=True)
        console.print(f"{target} is ready: tephra up --model {target}", highlight=False, soft_wrap=True)


@app.command()
def export(
    source: Source,
    target: Target,
    to: Annotated[
        Layout, typer.Option(help="hf: for transformers and vLLM. original: for the original code.")
    ] = Layout.HF,
    template: Template = None,
    tower: Annotated[str, typer.Option(help="With --to original: the vision tower's name there.")] = "vision-tower",
    dtype: Dtype = DtypeName.KEEP,
    shard_gb: ShardSize = 5.0,
) -> None:
    """Write a checkpoint for others to load; what they cannot do is refused, what they do otherwise is told."""
    with _told() as console:
        from model.checkpoint.export import export_for_transformers, export_original

        shard_bytes, chosen = int(shard_gb * _GB), _torch_dtype(dtype)
        with byte_bar(console) as progress:
            if to is Layout.HF:
                notes = export_for_transformers(
                    source, target, dtype=chosen, template=template, shard_bytes=shard_bytes, progress=progress
                )
            else:
                notes = export_original(
                    source, target, dtype=chosen, tower=tower, shard_bytes=shard_bytes, progress=progress
                )
        for note in notes:
            console.print(note, style="yellow", soft_wrap=True)
        console.print(f"{target} is written.", highlight=False, soft_wrap=True)


@app.command()
def quantize(source: Source, target: Target, shard_gb: ShardSize = 5.0) -> None:
    """Write a checkpoint whose weights are int8, for workers of ours on CPUs: half the bytes, and loaded sooner."""
    with _told() as console:
        from model.cpu.int8_checkpoint import write_int8

        with byte_bar(console) as progress:
            write_int8(source, target, shard_bytes=int(shard_gb * _GB), progress=progress)
        console.print(f"{target} is ready: tephra up --model {target}", highlight=False, soft_wrap=True)


@app.command()
def verify(
    source: Source,
    engine: Annotated[
        Engine, typer.Option(help="native: leave out what only concerns transformers and vLLM.")
    ] = Engine.ANY,
    as_json: AsJson = False,
) -> None:
    """Say in words what is wrong with a checkpoint; exit code 1 if anything is."""
    with _told(to_stderr=as_json) as console:
        from model.checkpoint.verify import verify_checkpoint

        with byte_bar(console) as progress:
            found = verify_checkpoint(source, progress=progress)
        told = [finding for finding in found if engine is Engine.ANY or finding.kind not in ("elsewhere", "note")]
        wrong = [finding for finding in told if finding.kind != "note"]
        if as_json:
            print(json.dumps({"sound": not wrong, "findings": [asdict(finding) for finding in told]}, indent=2))
        for finding in [] if as_json else told:
            mark = {"fault": "[red]✗[/] ", "note": "[dim]·[/] "}.get(finding.kind, "[yellow]✗[/] ")
            console.print(mark, end="")
            console.print(finding.text, markup=False, highlight=False, soft_wrap=True)
        if not wrong and not as_json:
            console.print("[green]✓[/] nothing is wrong with it")
    if wrong:
        raise typer.Exit(1)


@app.command()
def inspect(
    source: Source,
    digests: Annotated[bool, typer.Option("--digests", help="Compute digests that no manifest holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a checkpoint is: parts, parameters, dtype, generation, template, digests."""
    with _told(to_stderr=as_json) as console:
        from model.checkpoint.original_summary import in_original_layout, summarise_original
        from model.checkpoint.summary import summarise

        summary: Summary | OriginalSummary
        if in_original_layout(source):
            original = summary = summarise_original(source)
            facts = _facts_of_original(original)
            advice = original.command
        else:
            with byte_bar(console) as progress:
                ours = summary = summarise(source, digests=digests, progress=progress)
            facts, advice = _facts(ours), None
        if as_json:
            print(json.dumps({**asdict(summary), "parameters": summary.parameters}, indent=2))
        else:
            _print_facts(facts, console)
            console.print()
            _print_parts(summary.parts, console)
            if advice is not None:
                console.print(f"\nTo import it: {advice}", markup=False, highlight=False, soft_wrap=True)


def _chosen(plan: CheckpointPlan) -> dict[str, str | None]:
    """What an import has settled, for whoever may want it otherwise."""
    from model.checkpoint.summary import describe_images, describe_template

    return {
        "  generation": plan.config.generation or f"not told ({plan.config.kind})",
        "  images": f"{describe_images(plan.config)}; at most {plan.config.geometry.max_tokens} tokens each",
        "  chat template": describe_template(plan.template) or "none; --template gives it one",
        "  dtype": str(plan.raw["torch_dtype"]),
    }


def _facts(summary: Summary) -> dict[str, str | None]:
    return {
        "checkpoint": summary.path,
        "version": summary.version or "no manifest",
        "parent": summary.parent,
        "imported from": summary.source,
        "made from": "\n".join(summary.made_from) or None,
        "generation": summary.generation or f"not told ({summary.model_type})",
        "images": f"{summary.images}; at most {summary.image_tokens} tokens each",
        "context": f"{summary.context_length} tokens",
        "weights": summary.quantization,
        "vocabulary": f"{summary.vocabulary}, image token {summary.image_token_id}",
        "chat template": summary.template or "none",
        "parameters": f"{summary.parameters:,}",
    }


def _facts_of_original(summary: OriginalSummary) -> dict[str, str | None]:
    return {
        "checkpoint": summary.path,
        "layout": f"{summary.layout}: {summary.holds}",
        "generation": summary.generation,
        "images": summary.images,
        "vision tower": summary.vision_tower,
        "context": f"{summary.context_length} tokens" if summary.context_length else None,
        "chat template": summary.template,
        "parameters": f"{summary.parameters:,}",
        "missing": "\n".join(summary.missing) or None,
    }


def _print_facts(facts: Mapping[str, str | None], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    rows = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value is not None:
            rows.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    console.print(rows)


def _print_parts(summaries: Sequence[PartSummary], console: Console) -> None:
    from rich.table import Table

    parts = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("part", "", "parameters", "bytes", "dtype", "digest"):
        parts.add_column(column, justify="right" if column in ("parameters", "bytes") else "left", overflow="fold")
    for part in summaries:
        digest = part.digest[:12] if part.digest else "not recorded" if part.tensors else ""
        parts.add_row(part.name, part.described, f"{part.parameters:,}", f"{part.bytes:,}", part.dtype, digest)
    console.print(parts)


@contextmanager
def _told(*, to_stderr: bool = False) -> Iterator[Console]:
    """A console; what goes wrong is told in one line. SIGTERM is taken as Ctrl-C is, so that nothing half is left."""
    from rich.console import Console

    from model.errors import ModelError

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield Console(stderr=to_stderr)
    except ModelError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; nothing was kept", 130)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def byte_bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar of bytes, one for each thing that is done; drawn on terminals only."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done)

        yield progress


def _torch_dtype(name: DtypeName) -> torch.dtype | None:
    import torch

    return {
        DtypeName.KEEP: None,
        DtypeName.FLOAT32: torch.float32,
        DtypeName.FLOAT16: torch.float16,
        DtypeName.BFLOAT16: torch.bfloat16,
    }[name]


def _fail(message: str, code: int = 1) -> NoReturn:
    print(f"tephra: {message}", file=sys.stderr)
    raise typer.Exit(code)
