"""The `tephra` command. Each subcommand imports what it needs when it runs, so that --help never waits for torch."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from deploy.bench import app as bench_app
from deploy.checkpoint import app as checkpoint_app
from deploy.data import app as data_app
from deploy.keys import app as keys_app
from deploy.workers import app as workers_app

app = typer.Typer(
    name="tephra",
    help="Serves and trains the LLaVA family: an OpenAI-compatible chat API with images in front of many workers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(workers_app, name="workers")
app.add_typer(keys_app, name="keys")
eval_app = typer.Typer(help="Measure a model that is being served.", no_args_is_help=True)
app.add_typer(eval_app, name="eval")

DEMO = "demo"

# Flags of these belong to the processes themselves and are passed on as they are, --help too.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

Model = Annotated[str, typer.Option(envvar="TEPHRA_MODEL", help="A checkpoint folder, or 'demo'.")]


@app.command()
def up(
    model: Model = "demo",
    host: Annotated[str, typer.Option(envvar="TEPHRA_HOST", help="Address the API listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TEPHRA_PORT", help="Port of the API; 0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(envvar="TEPHRA_WORKERS", help="How many workers to start.")] = 1,
    processes: Annotated[
        int, typer.Option(envvar="TEPHRA_PROCESSES", help="How many controller processes answer on the port.")
    ] = 1,
    redis_url: Annotated[
        str | None, typer.Option(envvar="TEPHRA_REDIS_URL", help="Shared state; an embedded Valkey by default.")
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            envvar="TEPHRA_CHAT_TEMPLATE",
            metavar="NAME|FILE",
            help="Prompt format to serve with; the checkpoint's by default.",
        ),
    ] = None,
    start_seconds: Annotated[
        float, typer.Option(envvar="TEPHRA_START_SECONDS", help="Most time for a worker to load its model.")
    ] = 900.0,
) -> None:
    """Start everything on this machine: shared state, controller and workers. Ctrl-C stops it all.

    Settings of the controller and of the workers that are no flag here are read from their TEPHRA_* environment names.
    """
    from rich.console import Console

    from deploy.launcher import AlreadyTold, Launch, LaunchError
    from deploy.launcher import up as launch

    options = Launch(model, host, port, workers, redis_url or None, start_seconds, chat_template or None, processes)
    try:
        code = launch(options, Console())
    except AlreadyTold:
        code = 1
    except LaunchError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)


@app.command(context_settings=_PASSED_ON)
def controller(context: typer.Context) -> None:
    """Run the controller alone; 'tephra controller --help' lists its settings."""
    from server.__main__ import run
    from server.protocol.flags import SettingsError
    from server.settings import read_settings

    try:
        settings = read_settings(context.args)
    except SettingsError as error:
        _fail(str(error))
    raise typer.Exit(run(settings))


@app.command(context_settings=_PASSED_ON)
def worker(context: typer.Context) -> None:
    """Run one worker alone, on the demo model by default; 'tephra worker --help' lists its settings."""
    from server.protocol.flags import SettingsError
    from worker.settings import read_settings

    try:
        settings = read_settings(context.args, {"TEPHRA_MODEL": DEMO, **os.environ})
    except SettingsError as error:
        _fail(str(error))
    if settings.model == DEMO:
        from deploy.demo.assemble import demo_checkpoint
        from deploy.demo.errors import DemoError

        try:
            settings = replace(settings, model=str(demo_checkpoint()), served_name=settings.served_name or DEMO)
        except DemoError as error:
            _fail(str(error))

    from worker.serve import run

    raise typer.Exit(run(settings))


@app.command(context_settings=_PASSED_ON)
def demo(context: typer.Context) -> None:
    """Put the demo checkpoint together, unless it is there already, and print its folder."""
    from deploy.demo.__main__ import main as assemble

    raise typer.Exit(assemble(context.args))


@app.command()
def chat(
    question: Annotated[str | None, typer.Argument(help="Without it, a conversation begins.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be given several times.")] = None,
    url: Annotated[
        str, typer.Option(envvar="TEPHRA_URL", help="Any OpenAI-compatible server.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Default: the first that the server lists.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TEPHRA_API_KEY", help="If the server asks for one.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: the likeliest answer.")] = None,
) -> None:
    """Ask about pictures from the terminal."""
    from rich.console import Console

    from deploy.chat import Chat, ChatError, show, talk

    try:
        conversation = Chat(url, model=model, api_key=api_key, max_tokens=max_tokens, temperature=temperature)
        try:
            for path in image or ():
                conversation.attach(path)
            if question is None:
                talk(conversation, Console())
            else:
                show(conversation, question, Console())
        finally:
            conversation.close()
    except ChatError as error:
        _fail(str(error))


@app.command(context_settings=_PASSED_ON)
def train(context: typer.Context) -> None:
    """Run one stage of training; 'tephra train --help' lists the recipes and options."""
    _needs("accelerate", "peft", extra="train")
    from training.train import command

    command(context.args)


@eval_app.command("demo", context_settings=_PASSED_ON)
def eval_demo(context: typer.Context) -> None:
    """Ask a running system about held-out scenes and print its scores; 'tephra eval demo --help' lists the options."""
    from training.evaluation.__main__ import main as evaluate

    raise typer.Exit(evaluate(context.args))


@eval_app.command("int8", context_settings=_PASSED_ON)
def eval_int8(context: typer.Context) -> None:
    """Compare a checkpoint in int8 with itself in bfloat16, token by token; '--help' lists the options."""
    from training.evaluation.int8 import main as evaluate

    raise typer.Exit(evaluate(context.args))


def _needs(*packages: str, extra: str) -> None:
    """Says which extra brings packages that are not installed."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        _fail(f"{' and '.join(missing)} not installed: 'make install EXTRAS={extra}' brings what this command needs.")


def _fail(message: str) -> NoReturn:
    print(f"tephra: {message}", file=sys.stderr)
    raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    app(args=None if arguments is None else list(arguments))


if __name__ == "__main__":
    main()
