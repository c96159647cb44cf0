"""Give memory that is free back to the system, where the C library keeps it for later."""

import asyncio
import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_EVERY_S: Final = 30.0
_M_TRIM_THRESHOLD: Final = -1  # malloc.h of glibc
_M_MMAP_THRESHOLD: Final = -3
_MAPPED_FROM_BYTES: Final = 2**20
_KEPT_BYTES: Final = 8 * 2**20
_STATM: Final = Path("/proc/self/statm")


def bound_heaps() -> None:
    """Keep each heap of the C library from holding more than 8 MB of free memory; does nothing without glibc.

    glibc raises these two limits by itself, to 32 and 64 MB, once a large picture was freed, and malloc_trim does not
    reach what the heaps of threads then keep. Fixed: 161 for 267 MB resident after one minute of bad pictures and
    broken streams, with 25 MB in use; a 500x375 JPEG in 1.76 for 2.04 ms of CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def freeze_heap() -> None:
    """Take what lives by now, all modules above all, out of every later search for cycles.

    A search of everything stops all threads for 35 ms: at twice capacity the p99 of a refusal was 12 to 30 ms with it,
    8 ms without (two cores, load generator included).
    """
    gc.collect()
    gc.freeze()


def return_memory() -> None:
    """Return the C library's free memory; does nothing where it is not glibc.

    After a swap 45 to 80 MB of a Lite0 model stayed resident without this (arenas of the threads that ran it), and of
    opening its fp32 graph 32 MB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def private_bytes() -> int:
    """Return how many bytes this process alone holds, mapped files not counted; 0 where the system does not tell."""
    try:
        _, resident, shared, *_ = _STATM.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


async def keep_returning_memory() -> None:
    """Collect cycles and return free memory now and then, until cancelled.

    Calls that failed leave cycles of frames and errors that hold their pictures: few objects of megabytes each, so that
    Python looks for them seldom, and `make soak` saw 110 MB come and go. Costs some 20 ms, twice a minute.
    """
    while True:
        await asyncio.sleep(_EVERY_S)
        with suppress(RuntimeError):  # no more threads are to be had just now
            await asyncio.to_thread(gc.collect)
            await asyncio.to_thread(return_memory)
