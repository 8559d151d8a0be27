"""Real processes that train one model over gloo: forked, so that starting costs no imports, or started by torchrun."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.shell import write_recipe
from tests.trust.killing import reaped

LONGEST = 120.0


@dataclass
class Rank:
    """One process of a run: its id, and the file that holds what it printed."""

    pid: int
    log: Path

    def ended(self) -> tuple[int, str]:
        """(exit code, minus the signal where one ended it; what was printed); waits for the end, two minutes at most."""
        status = reaped(self.pid)
        assert status is not None
        return os.waitstatus_to_exitcode(status), self.log.read_text(errors="replace")


def start_all(recipe: Mapping[str, Any], out: Path, resume: bool, ranks: int = 2) -> list[Rank]:
    """`luthier run` of a recipe in so many forked processes, the first with rank 0."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = write_recipe(out.parent / f"{out.name}.yaml", dict(recipe))
    words = ["luthier", "run", str(file), "--out", str(out), *(["--resume"] if resume else [])]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_fork(words, rank, ranks, port, out.parent / f"{out.name}.{rank}.log") for rank in range(ranks)]


def _fork(words: Sequence[str], rank: int, ranks: int, port: int, log: Path) -> Rank:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return Rank(child, log)
    code = 1
    try:
        shown = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(shown, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = _as_rank(words, rank, ranks, port)
    except BaseException as fault:
        print(repr(fault), file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _as_rank(words: Sequence[str], rank: int, ranks: int, port: int) -> int:
    import torch
    from accelerate.state import AcceleratorState, PartialState

    from luthier.cli.main import main

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")  # fmt: skip
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    sys.argv = list(words)
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def finished(ranks: Sequence[Rank]) -> None:
    """Wait until all have ended well."""
    for rank in ranks:
        code, told = rank.ended()
        assert code == 0, told[-3000:]


def killed_after(ranks: Sequence[Rank], out: Path, step: int, which: int) -> float:
    """Send SIGKILL to one process as soon as a checkpoint of this step or a later one is there; the time of it."""
    began = time.monotonic()
    while not _reached(out, step):
        assert time.monotonic() - began < LONGEST, ranks[0].log.read_text()
        time.sleep(0.005)
    os.kill(ranks[which].pid, signal.SIGKILL)
    return time.monotonic()


def _reached(out: Path, step: int) -> bool:
    names = [p.name for p in (out / "checkpoints").glob("step-*")]
    return any(int(n.removeprefix("step-")) >= step for n in names)
