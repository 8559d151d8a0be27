"""Several processes that train one model: when one of them is lost, the others stop at once and say which and what to do."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import ProcessLost

BROKEN = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "gloo", "nccl")
"""What back ends say, in small letters, when another process does not answer."""


@dataclass(frozen=True)
class Company:
    """The processes of a run: host and process id of each, by rank (one alone: none), and the rank of this one."""

    members: tuple[tuple[str, int], ...] = ()
    own: int = 0

    @classmethod
    def of(cls, accelerator: Any) -> Company:
        """All processes of an accelerator. Collective: call it on every process."""
        if accelerator is None or accelerator.num_processes == 1:
            return cls()
        return cls(
            tuple(_each((socket.gethostname(), os.getpid()), accelerator.num_processes)), accelerator.process_index
        )

    def gathered(self, value: Any) -> list[Any]:
        """What every process holds of this, by rank. Collective."""
        return [value] if not self.members else _each(value, len(self.members))

    def lost(self, wait: float = 2.0) -> list[int]:
        """Ranks of this machine whose processes have ended; waits so many seconds for the first."""
        here, end = self.members[self.own][0], time.monotonic() + wait
        while True:
            gone = [r for r, (host, pid) in enumerate(self.members) if host == here and not alive(pid)]
            if gone or time.monotonic() > end:
                return gone
            time.sleep(0.02)

    @contextmanager
    def watched(self, saved: Callable[[], str]) -> Iterator[None]:
        """Turn the loss of another process, or a launcher's request to stop, into ProcessLost.

        saved: says in a sentence what there is to go on from.
        """
        if not self.members:
            yield
            return

        def told_to_stop(*_: object) -> None:
            raise ProcessLost(self.sentence(self.lost(), "this one was told to stop", saved()))

        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, told_to_stop) if main else None
        try:
            yield
        except RuntimeError as fault:
            gone = self.lost()
            if not gone and not any(word in str(fault).lower() for word in BROKEN):
                raise
            first = str(fault).strip().splitlines()[0][:200]
            raise ProcessLost(self.sentence(gone, f"another one does not answer ({first})", saved())) from fault
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)

    def sentence(self, gone: list[int], otherwise: str, saved: str) -> str:
        """The error: who is gone, and what to go on from."""
        names = " and ".join(f"process {r} (id {self.members[r][1]}) has ended" for r in gone) or otherwise
        return (f"training in {len(self.members)} processes requires all of them; {names}, so process {self.own} stops. "
                f"{saved}")  # fmt: skip


def _each(value: Any, size: int) -> list[Any]:
    import torch.distributed as dist

    out: list[Any] = [None] * size
    dist.all_gather_object(out, value)
    return out


def alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2][:1] not in "ZX"
        )
    except OSError:
        return True
