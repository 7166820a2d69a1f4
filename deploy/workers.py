"""`tephra workers`: what the workers behind a controller do, and which of them get requests."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import httpx
import typer

app = typer.Typer(help="See the workers behind a controller, and drain them.", no_args_is_help=True)

_SECONDS = 10.0  # for one answer of the controller
_RESUME_SECONDS = 15.0  # most time for a worker to hear that its drain was taken back
_PAUSE = 0.5  # seconds between two looks at a worker that drains

Url = Annotated[str, typer.Option(envvar="TEPHRA_URL", help="The controller.")]
Key = Annotated[str | None, typer.Option(envvar="TEPHRA_ADMIN_KEY", help="The controller's admin key.")]
WorkerId = Annotated[str, typer.Argument(metavar="WORKER", help="Its id, as 'tephra workers list' shows it.")]
_HERE = "http://127.0.0.1:8000"


@app.command("list")
def list_workers(url: Url = _HERE, admin_key: Key = None) -> None:
    """Show every worker with its state, and those that were lost lately."""
    from rich.console import Console
    from rich.table import Table

    told = _ask("GET", url, "/admin/workers", admin_key)
    table = Table("worker", "state", "model", "version", "running", "waiting", "in hand", "url")
    for worker in [*told["workers"], *told["lost"]]:
        in_hand = "?" if worker["in_hand"] is None else str(worker["in_hand"])
        numbers = (str(worker["running"]), str(worker["waiting"]), in_hand)
        table.add_row(worker["id"], _in_words(worker), worker["model"], worker["version"], *numbers, worker["url"])
    Console().print(table)


@app.command()
def drain(
    worker: WorkerId,
    wait: Annotated[bool, typer.Option(help="Return once the worker is safe to stop.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Most seconds to wait.")] = 600.0,
    url: Url = _HERE,
    admin_key: Key = None,
) -> None:
    """Send a worker no more requests; what it has in hand is finished. Exit code 3 if --wait ran out of time."""
    described = _ask("POST", url, f"/admin/workers/{quote(worker, safe='')}/drain", admin_key)
    deadline = time.monotonic() + timeout
    while wait and not described["safe_to_stop"]:
        if time.monotonic() >= deadline:
            print(f"{worker}: {_in_words(described)} still after {timeout:g} s")
            raise typer.Exit(3)
        time.sleep(_PAUSE)
        described = _member(worker, url, admin_key)
    print(f"{worker}: {_in_words(described)}")


@app.command()
def undrain(worker: WorkerId, url: Url = _HERE, admin_key: Key = None) -> None:
    """Send a drained or draining worker requests again; returns once it takes them."""
    described = _ask("POST", url, f"/admin/workers/{quote(worker, safe='')}/undrain", admin_key)
    deadline = time.monotonic() + _RESUME_SECONDS
    while described["state"] in ("draining", "drained"):  # it hears of it with its next heartbeat
        if time.monotonic() >= deadline:
            print(f"{worker}: {_in_words(described)} by its own word: it is being stopped, or its controller is away")
            raise typer.Exit(3)
        time.sleep(_PAUSE)
        described = _member(worker, url, admin_key)
    print(f"{worker}: {_in_words(described)}")


def _member(worker: str, url: str, admin_key: str | None) -> dict[str, Any]:
    """Ends the command where it is none any more."""
    for member in _ask("GET", url, "/admin/workers", admin_key)["workers"]:
        if member["id"] == worker:
            return dict(member)
    print(f"{worker}: gone")
    raise typer.Exit


def _in_words(worker: dict[str, Any]) -> str:
    state = str(worker["state"]).replace("_", " ")
    return f"{state}, safe to stop" if worker["safe_to_stop"] else state


def _ask(method: str, url: str, path: str, admin_key: str | None) -> Any:
    headers = {"Authorization": f"Bearer {admin_key}"} if admin_key else {}
    try:
        answer = httpx.request(method, url.rstrip("/") + path, headers=headers, timeout=_SECONDS, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _fail(f"the controller at {url} cannot be asked: {error or type(error).__name__}")
    if answer.status_code != 200:
        _fail(f"the controller answered {answer.status_code}: {_reason(answer)}")
    return answer.json()


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]


def _fail(message: str) -> NoReturn:
    print(f"tephra: {message}", file=sys.stderr)
    raise typer.Exit(1)
