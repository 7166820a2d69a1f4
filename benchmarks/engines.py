"""Servers that can stand side by side: how each is named on the command line, and how it is started.

    tephra, tephra:int8=--quantization int8, vllm, vllm:one-core=VLLM_CPU_OMP_THREADS_BIND=0, transformers

A label after the colon tells configurations of one kind apart; behind `=` come environment names (NAME=VALUE) and then
arguments of that server.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from benchmarks.machine import processors

Kind = Literal["tephra", "vllm", "transformers"]
MODEL = "m"  # the name under which every server serves
_SPLIT = re.compile(rf",(?=\s*(?:{'|'.join(get_args(Kind))})(?:[:=,]|\s*$))")
_ONE = re.compile(rf"({'|'.join(get_args(Kind))})(?::([\w.-]+))?(?:=(.*))?", re.DOTALL)
_LIMIT = re.compile(r"(\S+)=([1-9]\d*)(?::([1-9]\d*))?")
_NAME = re.compile(r"[A-Z][A-Z0-9_]*=.*", re.DOTALL)
_VLLM_CPU_CACHE_GIB = "2"


@dataclass(frozen=True)
class Limit:
    """Where a slow server is measured: with at most so many requests at once, and so many at each point."""

    concurrency: int
    requests: int | None = None


@dataclass(frozen=True)
class Engine:
    """One configuration of one kind of server."""

    label: str
    kind: Kind
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    limit: Limit | None = None


def parse_engines(text: str) -> tuple[Engine, ...]:
    """Raises ValueError with words."""
    engines: list[Engine] = []
    for part in _SPLIT.split(text):
        match = _ONE.fullmatch(part.strip())
        if match is None:
            kinds = ", ".join(get_args(Kind))
            raise ValueError(f"engine {part.strip()!r}: expected KIND, KIND:LABEL or KIND:LABEL=ARGUMENTS of {kinds}")
        kind, label, rest = match.groups()
        words = shlex.split(rest or "")
        names = 0
        while names < len(words) and _NAME.fullmatch(words[names]):
            names += 1
        environment = tuple((name, value) for name, _, value in (word.partition("=") for word in words[:names]))
        engines.append(
            Engine(f"{kind}:{label}" if label else kind, cast(Kind, kind), tuple(words[names:]), environment)
        )
    labels = [engine.label for engine in engines]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(f"engines: {', '.join(sorted(twice))} comes twice; tell them apart by KIND:LABEL=...")
    return tuple(engines)


def with_limits(engines: tuple[Engine, ...], text: str) -> tuple[Engine, ...]:
    """`text` as LABEL=CONCURRENCY or LABEL=CONCURRENCY:REQUESTS, several with commas. Raises ValueError with words."""
    limits: dict[str, Limit] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = _LIMIT.fullmatch(part)
        if match is None:
            raise ValueError(f"limit {part!r}: expected ENGINE=CONCURRENCY or ENGINE=CONCURRENCY:REQUESTS, from 1 on")
        label, concurrency, requests = match.groups()
        limits[label] = Limit(int(concurrency), int(requests) if requests else None)
    if unknown := limits.keys() - {engine.label for engine in engines}:
        raise ValueError(f"limit: no engine is called {', '.join(sorted(unknown))}")
    return tuple(replace(engine, limit=limits.get(engine.label)) for engine in engines)


def command(engine: Engine, checkpoint: Path, port: int, dtype: str, vllm_python: str) -> tuple[str, ...]:
    """What starts the server on this machine's loopback address."""
    where = ("--host", "127.0.0.1", "--port", str(port))
    model = ("--model", str(checkpoint), "--dtype", dtype)
    if engine.kind == "vllm":
        server = (vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--served-model-name", MODEL)
    elif engine.kind == "transformers":
        server = (sys.executable, "-m", "benchmarks.transformers_server", "--served-name", MODEL)
    else:
        server = (sys.executable, "-m", "worker", "--served-name", MODEL)
    return (*server, *model, *where, *engine.arguments)


def environment(engine: Engine) -> Mapping[str, str]:
    """This process's, without settings that are meant for a Tephra of the user's own; nothing is downloaded."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TEPHRA_")}
    own = {"HF_HUB_OFFLINE": "1"}
    if engine.kind == "vllm":  # its best setting on a CPU: it leaves a core free by default
        own |= {"VLLM_CPU_KVCACHE_SPACE": _VLLM_CPU_CACHE_GIB, "VLLM_NO_USAGE_STATS": "1"}
        cores = processors()
        whole = cores == list(range(cores[0], cores[-1] + 1))
        own["VLLM_CPU_OMP_THREADS_BIND"] = f"{cores[0]}-{cores[-1]}" if whole else ",".join(map(str, cores))
    return inherited | own | dict(engine.environment)
