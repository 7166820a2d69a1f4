"""Rows of a file that stays mapped, read without the file coming to lie in memory.

Pages of a mapped file count as the process's own from the moment they are read until the mapping ends. Nothing is lost
when they are given back: whoever reads them again gets them from the file.
"""

from __future__ import annotations

import ctypes
import mmap

import torch

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def copied(rows: torch.Tensor) -> torch.Tensor:
    """The same numbers in memory of their own. `rows` is a view of a mapping that nobody writes to."""
    copy = rows.clone(memory_format=torch.contiguous_format)
    if rows.numel():
        span = 1 + sum((size - 1) * stride for size, stride in zip(rows.shape, rows.stride(), strict=True))
        first = rows.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        length = rows.data_ptr() + span * rows.element_size() - first
        _LIBC.madvise(first, length, mmap.MADV_DONTNEED)  # advice: where it is not taken, it costs memory only
    return copy
