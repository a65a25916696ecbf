"""Keep freed tensor memory in the process on a CPU, if the C library supports it."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

KEPT_BYTES = 2**30
"""Maximum free memory at the top of the heap, and the minimum size of a block with its own mapping."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's option numbers (mallopt(3))."""


@cache
def keep_freed_memory() -> bool:
    """Ask glibc, once per process, to keep freed memory; return whether it agreed.

    A forward and backward pass allocates and frees some megabytes for every operation of every layer. By default each
    such
    block is mapped again, and the kernel clears each page on first touch.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(option, KEPT_BYTES) == 1 for option in (TRIM_THRESHOLD, MMAP_THRESHOLD))
