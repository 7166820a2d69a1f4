"""Keeps freed memory for the next request instead of giving it back to the system each time.

Bodies of a megabyte come and go with every request that has a picture. By default glibc takes blocks of their size from
the system and returns them, so that each copy pays for fresh pages: about a quarter of the processor time of such a
request. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import sys

_MIB = 1024 * 1024
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
_KEPT = 64 * _MIB  # bytes of free memory that may stay with the process
_LARGE = 8 * _MIB  # bytes: larger blocks still go back when they are freed


def keep_freed_memory() -> bool:
    """Whether this system can do it."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT)) and bool(mallopt(_MMAP_THRESHOLD, _LARGE))
