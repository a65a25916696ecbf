"""Memory that tensors give back on a CPU: kept for the next ones, where the C library lets itself be asked to."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

KEPT_BYTES = 2**30
"""Most that stays with the process at the end of its heap, and the smallest block that is mapped by itself."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's names of these (mallopt(3))."""


@cache
def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; whether it does. Once a process.

    A pass there and back makes and lets go some megabytes for every operation of every layer. By default each such
    block is mapped anew, and every page of it is cleared by the kernel when it is touched first.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(option, KEPT_BYTES) == 1 for option in (TRIM_THRESHOLD, MMAP_THRESHOLD))
