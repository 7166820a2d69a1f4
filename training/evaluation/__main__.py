"""`python -m training.evaluation`: the demo's table for a running system."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from training.evaluation.demo import EvaluationError, evaluate_demo
from training.scenes.assets import MissingAssetError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.evaluation", description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", help="the first model that the API lists when not given")
    parser.add_argument("--samples", type=int, default=200, help="questions per family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        result = evaluate_demo(
            options.base_url,
            options.api_key,
            options.model,
            options.samples,
            seed=options.seed,
            concurrency=options.concurrency,
        )
    except (EvaluationError, MissingAssetError) as error:
        print(error, file=sys.stderr)
        return 1
    console.print(result.table())
    for sample in result.chat:
        console.print(f"[bold]{sample.prompt}[/bold]\n{sample.answer}\n")
    if options.json is not None:
        options.json.write_text(result.to_json(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
