"""Where and with what a figure was measured, and whether the machine had anything else to do."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

_ROOT = Path(__file__).parents[1]
_FLAGS = re.compile(r"^(avx2|avx512(f|_bf16|_vnni|_fp16)|avx_vnni|amx_\w+|asimd|bf16|i8mm|sve2?)$")
_SECONDS = 60.0


@dataclass(frozen=True)
class Machine:
    """`cores` are those that this process may use; memory is in bytes."""

    cpu: str
    cores: int
    memory: int
    flags: tuple[str, ...]  # instruction sets that matter for matrix products
    gpus: tuple[str, ...]
    system: str
    python: str

    @staticmethod
    def this() -> Machine:
        cpu, flags = _processor()
        return Machine(
            cpu=cpu or platform.processor() or platform.machine(),
            cores=len(processors()),
            memory=psutil.virtual_memory().total,
            flags=flags,
            gpus=_gpus(),
            system=platform.platform(),
            python=platform.python_version(),
        )


def processors() -> list[int]:
    """The numbers of those that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def our_versions() -> dict[str, str]:
    """Of this environment, and the commit that runs; with a plus where files differ from it."""
    found = {"tephra": _commit() or _installed("tephra")}
    return found | {name: _installed(name) for name in ("torch", "transformers")}


def versions_of(python: str, packages: Iterable[str]) -> dict[str, str]:
    """Of another environment. Packages that it lacks are "none"."""
    program = (
        "import sys\nfrom importlib.metadata import PackageNotFoundError, version\n"
        "for name in sys.argv[1:]:\n try: print(name, version(name))\n except PackageNotFoundError: print(name, 'none')"
    )
    try:
        finished = subprocess.run(
            [python, "-c", program, *packages], capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(packages, "unknown")
    return dict(line.split(" ", 1) for line in finished.stdout.splitlines())


def busy_share(seconds: float) -> float:
    """The part of all processors' time that is in use over the next `seconds`; blocks for so long."""
    return psutil.cpu_percent(interval=seconds) / 100


def _processor() -> tuple[str, tuple[str, ...]]:
    """Linux tells both; elsewhere the flags are left out."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "", ()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    flags = (told.get("flags") or told.get("Features") or "").split()
    return told.get("model name", ""), tuple(sorted(flag for flag in flags if _FLAGS.match(flag)))


def _gpus() -> tuple[str, ...]:
    try:
        finished = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in finished.stdout.splitlines() if line.strip())


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _commit() -> str:
    """Empty where this is no working tree."""
    try:
        finished = subprocess.run(
            ["git", "-C", str(_ROOT), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return finished.stdout.strip()
