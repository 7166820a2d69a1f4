"""Runs compiled kernels on torch's own OpenMP threads.

A second pool of threads beside torch's would fight it for the cores: the idle one of the two spins. So a kernel is
handed to the OpenMP runtime that torch has loaded, by the very call that compilers make of `#pragma omp parallel`, and
runs on the same threads between two matrix products.

A kernel is a function of one address: that of an array of int64, sizes and pointers, in which the first is the number
of rows. Each thread works on its own share of the rows. Nothing here checks what the pointers point to: the functions
that hand them over do.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import torch
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch.autograd import profiler
from torch.profiler import record_function

logger = logging.getLogger(__name__)


def _finds_folder() -> bool:
    """Whether there is a folder to keep compiled code in: beside this file, the user's, or NUMBA_CACHE_DIR. Numba looks
    when it decorates, and raises where it finds none, as in a read-only installation."""
    try:
        njit(cache=True)(_finds_folder)
    except RuntimeError as error:
        logger.warning("kernels are compiled anew at every start, NUMBA_CACHE_DIR names no writable folder: %s", error)
        return False
    return True


# Fast arithmetic, but not at the price of NaN and infinity: a NaN must stay one, the engine looks for it.
_OPTIONS = {
    "fastmath": {"nsz", "arcp", "contract", "afn", "reassoc"},
    "error_model": "numpy",
    "boundscheck": False,
    "cache": _finds_folder(),
}
inlined = njit(inline="always")
compiled = njit(nogil=True, **_OPTIONS)
Kernel = Callable[..., None]


@cache
def openmp() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch computes with, or None where it is not the GNU one."""
    for file in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        runtime = ctypes.CDLL(str(file))
        for name in ("omp_get_thread_num", "omp_get_num_threads"):
            llvm.add_symbol(f"torch_{name}", ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value)
        runtime.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        runtime.GOMP_parallel.restype = None
        return runtime
    return None


def available() -> bool:
    """Whether kernels can run here: on a CPU, beside a torch that brings its GNU OpenMP runtime (Linux wheels do)."""
    return openmp() is not None


def disband() -> None:
    """Lets the calling thread's OpenMP threads go, once it has no more to compute.

    Each thread that computes has helpers of its own. When all of them together are more than there are cores, the
    runtime has every one sleep at each barrier instead of waiting awake, and a step with hundreds of barriers takes
    half as long again. So a process keeps one thread that computes.
    """
    if (runtime := openmp()) is not None:
        runtime.omp_pause_resource_all(_SOFT)


def work_alone() -> None:
    """The calling thread shall compute without helpers from now on; see `disband`."""
    torch.get_num_threads()  # torch sets a thread's number when it is first asked, and would do so after us
    if (runtime := openmp()) is not None:
        runtime.omp_set_num_threads(1)


_thread = types.ExternalFunction("torch_omp_get_thread_num", types.int32())
_threads = types.ExternalFunction("torch_omp_get_num_threads", types.int32())


@compiled
def share(rows: int) -> tuple[int, int]:
    """The rows `first` .. `last` - 1 that are this thread's to do."""
    number, count = _thread(), _threads()
    return rows * number // count, rows * (number + 1) // count


@compiled
def every() -> tuple[int, int]:
    """This thread's number and how many there are."""
    return _thread(), _threads()


@intrinsic
def address(typingctx: Any, value: Any) -> Any:
    """An int64 as a pointer, for `numba.carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def kernel(body: Callable[[Any], None]) -> Kernel:
    """Makes `body(address)` callable as `kernel(rows, *sizes and pointers)`; compiled at the first call.

    Under torch's profiler each call is an event named `MODULE.NAME`, as `dense._softmax_all`.
    """
    entry: list[int] = []
    name = f"{body.__module__.rpartition('.')[2]}.{body.__name__}"

    def run(rows: int, *values: int) -> None:
        runtime = openmp()
        assert runtime is not None, "kernels were asked for where they are not available"
        if not entry:
            loaded = cfunc("void(voidptr)", **_OPTIONS)(body)
            _kept.append(loaded)
            entry.append(loaded.address)
        block = (ctypes.c_int64 * (len(values) + 1))(rows, *values)
        with record_function(name) if profiler._is_profiler_enabled else _unseen:
            runtime.GOMP_parallel(entry[0], block, min(rows, torch.get_num_threads()), 0)

    return run


_unseen = nullcontext()
_SOFT = 1  # omp_pause_soft: threads go, settings stay
_kept: list[Any] = []  # compiled code lives as long as these
