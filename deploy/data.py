"""`tephra data ...`: training data made, converted, mixed and checked.

Only the command line is here: options, what is printed, and with which exit code. What is done is done in
`training.data` and `training.scenes`, which are imported when a command runs.
"""

from __future__ import annotations

import typer

from deploy.data_check import check
from deploy.data_convert import convert, formats
from deploy.data_filter import filter_captions
from deploy.data_instruct import instruct
from deploy.data_mix import mix, recipes

app = typer.Typer(help="Make, convert, mix and check training data.", no_args_is_help=True)
app.command()(instruct)
app.command("filter")(filter_captions)
for command in (formats, convert, recipes, mix, check):
    app.command()(command)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def demo(context: typer.Context) -> None:
    """Compose scenes whose answers are known; 'tephra data demo --help' lists the options."""
    from training.scenes.__main__ import main as compose

    raise typer.Exit(compose(context.args))
