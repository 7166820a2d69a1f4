"""Kernels run where nothing can be written: a read-only installation, a user without a home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
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
from model.kernels.rows import quantize
print(quantize(torch.ones(2, 32, dtype=torch.bfloat16)).values.sum().item())
"""


def test_kernels_compile_where_no_folder_is_writable() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=os.environ | NOWHERE, capture_output=True, text=True, timeout=200
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == ["numba finds no folder", str(2 * 32 * 255)]
    assert "compiled anew at every start" in finished.stderr
