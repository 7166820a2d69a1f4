"""`tephra bench serve | make-checkpoint | compare | profile`: how fast servers answer about pictures, and why.

Only the command line is here; the work is `benchmarks`, which is imported when a command runs.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.measuring import fail, needs_psutil, result_files
from deploy.steadiness import determinism, soak

if TYPE_CHECKING:
    from benchmarks.workload import Workload

app = typer.Typer(help="Measure servers under load with pictures.", no_args_is_help=True)
app.command()(determinism)
app.command()(soak)


class Images(StrEnum):
    DISTINCT = "distinct"
    REPEATED = "repeated"
    NONE = "none"


class Quantization(StrEnum):
    NONE = "none"
    INT8 = "int8"


class PictureFormat(StrEnum):
    JPEG = "jpeg"
    PNG = "png"


Words = Annotated[int, typer.Option(min=1, help="Length of each question, in words.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of each answer.")]
Seed = Annotated[int, typer.Option(min=0, help="Of pictures, words and arrivals.")]
Sizes = Annotated[str, typer.Option(metavar="WxH,...", help="Picture sizes, in turn.")]
Kind = Annotated[PictureFormat, typer.Option("--format", help="Of the picture files.")]
RequestSeconds = Annotated[float, typer.Option(min=0.1, help="Most time for one request.")]


@app.command()
def serve(
    url: Annotated[str, typer.Option(envvar="TEPHRA_URL", help="Any OpenAI-compatible server.")],
    model: Annotated[str | None, typer.Option(help="Default: the first that the server lists.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TEPHRA_API_KEY", help="If the server asks for one.")] = None,
    images: Annotated[Images, typer.Option(help="A picture of its own for every conversation, the same, or none.")] = (
        Images.DISTINCT
    ),
    pool: Annotated[int, typer.Option(min=1, help="With repeated pictures: how many there are.")] = 1,
    size: Sizes = "336x336",
    picture_format: Kind = PictureFormat.JPEG,
    turns: Annotated[int, typer.Option(min=1, help="Questions about each picture, one after the other.")] = 1,
    words: Words = 24,
    max_tokens: MaxTokens = 64,
    ignore_eos: Annotated[bool, typer.Option(help="Ask for answers of full length, where the server can.")] = True,
    stream: Annotated[bool, typer.Option(help="Without streaming only whole answers are timed.")] = True,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Conversations at once: 1; with --rate the most, 1024.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=1e-6, help="Conversations that arrive a second (Poisson).")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="How many; 32 unless --duration is given.")] = None,
    duration: Annotated[float | None, typer.Option(min=0.1, help="Seconds during which requests begin.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before the run that are not measured.")] = 2,
    slo: Annotated[
        str, typer.Option(metavar="NAME=TIME,...", help="Limits for goodput: ttft=500ms,itl=80ms,tpot=60ms,e2e=10s.")
    ] = "",
    request_timeout: RequestSeconds = 600.0,
    seed: Seed = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw latencies and time.")] = (
        None
    ),
) -> None:
    """Drive one server with pictures; print latencies, throughput and errors. Ctrl-C ends it early, with figures."""
    needs_psutil()
    from rich.console import Console

    from benchmarks.drive import Load
    from benchmarks.serve import Serve
    from benchmarks.serve import serve as run
    from benchmarks.statistics import Limits
    from benchmarks.target import TargetError

    if plot_file is not None and plot_file.suffix.lower() != ".svg":
        fail(f"--plot {plot_file}: expected a name that ends in .svg")
    try:
        limits = Limits.parse(slo)
        if not stream and limits.stated.keys() - {"e2e"}:
            raise ValueError("--slo: without streaming only e2e can be held to a limit")
        asked_of_all = _workload(size, picture_format, turns, words, max_tokens, seed)
        workload = replace(asked_of_all, images=images.value, pool=pool, ignore_eos=ignore_eos, stream=stream)
        most = concurrency or (1 if rate is None else 1024)
        load = Load(most, rate, requests if requests or duration else 32, duration, warmup)
        asked = Serve(url, workload, load, limits, model, api_key, request_timeout, json_file, plot_file)
        code = run(asked, Console())
    except (ValueError, TargetError, OSError) as error:
        fail(str(error))
    raise typer.Exit(code)


@app.command()
def compare(
    model: Annotated[Path, typer.Option(help="The checkpoint that all serve.")],
    engines: Annotated[
        str,
        typer.Option(
            metavar="KIND[:LABEL[=ARGS]],...",
            help="Of tephra, vllm, transformers; e.g. 'tephra,tephra:small=--block-size 8,vllm'.",
        ),
    ] = "tephra,transformers",
    concurrency: Annotated[str, typer.Option(metavar="N,...", help="Requests at once.")] = "1,8,32",
    images: Annotated[str, typer.Option(metavar="KIND,...", help="Of distinct, repeated, none.")] = (
        "distinct,repeated,none"
    ),
    runs: Annotated[int, typer.Option(min=1, help="How often everything is repeated, interleaved.")] = 5,
    requests: Annotated[int, typer.Option(min=1, help="Requests at each point, at least.")] = 8,
    waves: Annotated[int, typer.Option(min=1, help="At least so many times the concurrency.")] = 2,
    most_requests: Annotated[int, typer.Option(min=1, help="But at most so many at each point.")] = 1024,
    limit: Annotated[
        str,
        typer.Option(
            metavar="ENGINE=N[:REQUESTS],...",
            help="For slow engines: measure at up to N requests at once alone, with at most REQUESTS at each point.",
        ),
    ] = "",
    warmup: Annotated[int, typer.Option(min=0, help="Requests after each start that are not measured.")] = 2,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Most time for everything: no turn begins that would end later.")
    ] = None,
    max_tokens: MaxTokens = 64,
    words: Words = 24,
    size: Sizes = "336x336",
    picture_format: Kind = PictureFormat.JPEG,
    turns: Annotated[int, typer.Option(min=1, help="Questions about each picture.")] = 1,
    seed: Seed = 0,
    dtype: Annotated[str, typer.Option(help="What every engine computes in.")] = "bfloat16",
    vllm_python: Annotated[
        str, typer.Option(envvar="TEPHRA_VLLM_PYTHON", help="The Python of vLLM's environment.")
    ] = ".venv-vllm/bin/python",
    start_timeout: Annotated[float, typer.Option(min=1, help="Most time for a server to become ready.")] = 900.0,
    request_timeout: RequestSeconds = 900.0,
    idle_timeout: Annotated[float, typer.Option(min=0, help="Most time to wait for an idle machine.")] = 120.0,
    allow_busy: Annotated[bool, typer.Option("--allow-busy", help="Measure although the machine is not idle.")] = False,
    name: Annotated[str, typer.Option(help="Of the results.")] = "compare",
    json_file: Annotated[Path | None, typer.Option("--json", help="Default: benchmarks/results/DATE-NAME.json.")] = (
        None
    ),
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Default: the same, ending in .md.")] = None,
) -> None:
    """Start several servers on one checkpoint, one after another and repeatedly, and print how they compare."""
    needs_psutil()
    from rich.console import Console

    from benchmarks.compare import Compare, CompareError
    from benchmarks.compare import compare as run
    from benchmarks.engines import parse_engines, with_limits

    file, page = result_files(name, json_file, markdown_file)
    try:
        asked = Compare(
            model=model,
            engines=with_limits(parse_engines(engines), limit),
            concurrency=tuple(_at_least_one(part) for part in concurrency.split(",")),
            images=tuple(Images(part.strip()).value for part in images.split(",")),
            workload=_workload(size, picture_format, turns, words, max_tokens, seed),
            runs=runs,
            requests=requests,
            waves=waves,
            most=most_requests,
            warm_up=warmup,
            name=name,
            json=file,
            markdown=page,
            dtype=dtype,
            vllm_python=vllm_python,
            start_seconds=start_timeout,
            request_seconds=request_timeout,
            idle_seconds=idle_timeout,
            allow_busy=allow_busy,
            most_seconds=None if minutes is None else 60 * minutes,
        )
        code = run(asked, Console())
    except (ValueError, CompareError, OSError) as error:
        fail(str(error))
    raise typer.Exit(code)


def _workload(size: str, picture_format: PictureFormat, turns: int, words: int, max_tokens: int, seed: int) -> Workload:
    """What all commands say of pictures and questions in the same words. Raises ValueError."""
    from benchmarks.pictures import Size
    from benchmarks.workload import Workload

    sizes = tuple(Size.parse(part) for part in size.split(","))
    return Workload(
        sizes=sizes,
        picture_format=picture_format.value,
        turns=turns,
        prompt_words=words,
        max_tokens=max_tokens,
        seed=seed,
    )


def _at_least_one(text: str, option: str = "--concurrency") -> int:
    """Raises ValueError."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{option} {text!r}: expected whole numbers from 1 on")
    return int(text)


@app.command()
def router(
    processes: Annotated[str, typer.Option(metavar="N,...", help="Processes of our controller, each measured.")] = (
        "1,2"
    ),
    peers: Annotated[
        Path | None, typer.Option(metavar="VENV", help="An environment with vllm-router, sglang-router, smg.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="How often everything is repeated, interleaved.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each router, kind of request and run.")] = 1.5,
    name: Annotated[str, typer.Option(help="Of the results.")] = "router",
    json_file: Annotated[Path | None, typer.Option("--json", help="Default: benchmarks/results/DATE-NAME.json.")] = (
        None
    ),
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Default: the same, ending in .md.")] = None,
) -> None:
    """Set our controller and other routers before a worker that answers at once; print what each adds."""
    needs_psutil()
    from rich.console import Console

    from benchmarks.router import RouterBench, router_bench
    from benchmarks.servers import ServerFailed

    try:
        counts = tuple(_at_least_one(part, "--processes") for part in processes.split(","))
        file, page = result_files(name, json_file, markdown_file)
        code = router_bench(RouterBench(counts, peers, runs, seconds, name, file, page), Console())
    except (ValueError, ServerFailed, OSError) as error:
        fail(str(error))
    raise typer.Exit(code)


@app.command()
def profile(
    model: Annotated[Path, typer.Option(help="A checkpoint.")],
    quantization: Annotated[Quantization, typer.Option(help="As a worker's.")] = Quantization.NONE,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    prompt: Annotated[
        int, typer.Option(min=1, help="Tokens that are prefilled, and behind which answers stand.")
    ] = 600,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Answers decoded at once.")] = "1,8",
    repeats: Annotated[int, typer.Option(min=1, help="How often each step is timed, and then profiled.")] = 5,
) -> None:
    """Time an encoded tile, a prefill and decode steps on this machine's CPU, by parts. No server, one process."""
    from rich.console import Console

    from benchmarks.profile import Profile, profile_steps, table
    from benchmarks.results import print_rows
    from model.errors import ModelError

    try:
        batches = tuple(_at_least_one(part, "--batch") for part in batch.split(","))
        asked = Profile(model, quantization is Quantization.INT8, dtype, prompt, batches, repeats)
        print_rows(table(asked, profile_steps(asked)), Console())
    except (ValueError, ModelError, OSError) as error:
        fail(str(error))


@app.command("make-checkpoint")
def make_checkpoint(
    folder: Annotated[Path, typer.Argument(help="The directory to write; it must not exist.")],
    shape: Annotated[str, typer.Option(help="llava-0.7b: CLIP-L/14-336 and a Qwen2-0.5B. llava-tiny: to try.")] = (
        "llava-0.7b"
    ),
    generation: Annotated[str, typer.Option(help="Whose images and connector: llava-1.5, llava-next-2024-01, ...")] = (
        "llava-1.5"
    ),
    tokenizer: Annotated[
        str, typer.Option(metavar="demo|FOLDER", help="The checkpoint whose tokenizer and chat template it gets.")
    ] = "demo",
    context_length: Annotated[int, typer.Option(min=64, help="Most tokens of prompt and answer.")] = 4096,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights.")] = 0,
) -> None:
    """Write a checkpoint with random weights: it costs what a real one of its shape costs, and says nothing."""
    from rich.console import Console

    from benchmarks.checkpoint import make_checkpoint as make
    from deploy.checkpoint import byte_bar
    from deploy.demo.assemble import demo_checkpoint
    from deploy.demo.errors import DemoError
    from model.errors import ModelError

    console = Console()
    try:
        source = demo_checkpoint() if tokenizer == "demo" else Path(tokenizer)
        with byte_bar(console) as progress:
            make(
                folder,
                shape,
                source,
                generation=generation,
                context_length=context_length,
                seed=seed,
                progress=progress,
            )
    except (ModelError, DemoError, OSError) as error:
        fail(str(error))
    console.print(f"{folder} is ready: tephra bench compare --model {folder}", highlight=False, soft_wrap=True)
