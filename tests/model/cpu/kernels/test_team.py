"""Kernels run where nothing can be written: a read-only installation, a user without a home. Threads do not pile up."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from model.cpu.kernels import team

ROOT = Path(__file__).parents[4]
# Of Numba's places only the named folder is left, so that it holds for root too, whom no permission stops.
NOWHERE = {
    "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
    "NUMBA_CACHE_DIR": "/proc/nowhere",
    "HOME": "/proc",
}
PROGRAM = """
import torch
from numba import njit
try:
    njit(cache=True)(lambda: 0)
except RuntimeError:
    print("numba finds no folder")
from model.cpu.kernels.rows import quantize
print(quantize(torch.ones(2, 32, dtype=torch.bfloat16)).values.sum().item())
"""


def test_kernels_compile_where_no_folder_is_writable() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=os.environ | NOWHERE, capture_output=True, text=True, timeout=200
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == ["numba finds no folder", str(2 * 32 * 255)]
    assert "compiled anew at every start" in finished.stderr


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def add_much() -> None:
    torch.ones(2**22).add_(1.0)


def test_a_thread_that_works_alone_starts_no_helpers() -> None:
    usual = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=team.work_alone) as pool:
        pool.submit(int).result()
        before = threads()
        pool.submit(add_much).result()
        assert threads() == before
    assert torch.get_num_threads() == usual


def test_a_disbanded_thread_keeps_no_helpers() -> None:
    def run() -> tuple[int, int, int]:
        runtime = team.openmp()
        assert runtime is not None
        torch.get_num_threads()
        runtime.omp_set_num_threads(2)
        alone = threads()
        add_much()
        together = threads()
        team.disband()
        return alone, together, threads()

    with ThreadPoolExecutor(1) as pool:
        alone, together, after = pool.submit(run).result()
    assert together == alone + 1
    assert after == alone
