"""Memory of a process three ways: its peak, what of it came after a given moment, and what torch's allocator handed out.

The peak (VmHWM) holds the libraries too. Of the resident pages, RssFile and RssShmem are mapped files (libraries,
safetensors inputs), which the system may drop and read again; RssAnon must be in memory. The allocator's level is the running sum of the
allocations and releases that torch's profiler reports, exact for every tensor and every workspace that torch asks for on
the CPU, whatever the heap does with freed blocks; profiling is slow, so it happens in a process of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KIB, MIB = 1024, 2**20


def status() -> dict[str, float]:
    """MiB of this process by the kernel's names: VmHWM (peak), VmRSS, RssAnon, RssFile, RssShmem."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) / KIB for words in lines if words[0].startswith(("VmHWM", "VmRSS", "Rss"))}


class Watch(threading.Thread):
    """The highest level of resident pages that are no mapped file, sampled every `pause` seconds within a `with` block."""

    def __init__(self, pause: float = 0.002) -> None:
        super().__init__(daemon=True)
        self.pause, self.start_level, self.peak = pause, 0.0, 0.0
        self._over = threading.Event()

    @staticmethod
    def _level() -> float:
        return status()["RssAnon"]

    def __enter__(self) -> Watch:
        self.start_level = self.peak = self._level()
        self.start()
        return self

    def run(self) -> None:
        while not self._over.wait(self.pause):
            self.peak = max(self.peak, self._level())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        self.peak = max(self.peak, self._level())

    @property
    def grown(self) -> float:
        """MiB by which the peak lies above the level at the beginning of the block."""
        return self.peak - self.start_level


@contextmanager
def allocated() -> Iterator[dict[str, float]]:
    """Within the block: {"allocator_mib": peak of what was allocated since its beginning and not yet released}."""
    import torch

    out: dict[str, float] = {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield out
    level = peak = 0
    kept = (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(kept, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    out["allocator_mib"] = peak / MIB
