"""The process's memory: what freed blocks the C library keeps for the next step, and the peak of a run."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from contextlib import suppress
from pathlib import Path

import torch

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
KEPT, MAPPED = 1 << 29, 1 << 25
"""Free bytes at the end of the heap that stay; size from which a block is mapped by itself and given back when freed."""


def keep_freed() -> bool:
    """Let glibc keep freed blocks for the next step on the CPU; whether it was asked to.

    A step frees its activations and asks for the same blocks again. By default the C library gives the end of the heap back as
    soon as 128 KiB to 64 MiB of it are free, and the next step pays a page fault for each 4 KiB of it. Settings that the user
    made in the environment (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_) stand; other C libraries have none of this.
    """
    if any(f"MALLOC_{name}_THRESHOLD_" in os.environ for name in ("TRIM", "MMAP")):
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_TRIM, KEPT) and mallopt(_MMAP, MAPPED))
    return False


def reset_peak() -> None:
    """Begin a new measurement of peak memory; earlier runs of the same process do not count, nor what they left unused."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone keeps freed memory that can be asked back
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> float:
    """Peak memory since `reset_peak`: of the accelerator where there is one, else of the process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
