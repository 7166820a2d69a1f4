"""`tephra data ...`: training data made, converted, mixed and checked.

Only the command line is here: options, what is printed, and with which exit code. What is done is done in
`training.data` and `training.scenes`, which are imported when a command runs.
"""

from __future__ import annotations

import typer

from deploy.data_filter import filter_captions
from deploy.data_instruct import instruct

app = typer.Typer(help="Make training and test data.", no_args_is_help=True)
app.command()(instruct)
app.command("filter")(filter_captions)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def demo(context: typer.Context) -> None:
    """Compose scenes whose answers are known; 'tephra data demo --help' lists the options."""
    from training.scenes.__main__ import main as compose

    raise typer.Exit(compose(context.args))
