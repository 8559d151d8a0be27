"""Real processes that train or compare and are killed at random times; forked, so that each start costs milliseconds."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST = 120.0


def survive(work: Callable[[bool], Any], kills: int, span: float, seed: int = 0) -> int:
    """Run `work(resume)` in a process of its own, killing it `kills` times at random moments of its first `span` seconds.

    After each kill the work is resumed; at the end it runs to its end. Returns how many kills hit a living process.
    """
    chance, hit, resume = random.Random(seed), 0, False
    while hit < kills:
        child = start(work, resume)
        time.sleep(chance.uniform(0.0, span))
        if reaped(child, wait=False) is None:
            os.kill(child, signal.SIGKILL)
            reaped(child)
            hit += 1
        else:
            break
        resume = True
    finish(work, resume)
    return hit


def start(work: Callable[[bool], Any], resume: bool) -> int:
    """A forked process that does the work; its exit status is 0 if it came to the end."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work(resume)
        status = 0
    except BaseException as fault:
        print(repr(fault), flush=True)
    finally:
        os._exit(status)


def reaped(child: int, wait: bool = True) -> int | None:
    """The exit status, or None while it runs. Raises TimeoutError after two minutes."""
    began = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if not wait:
            return None
        if time.monotonic() - began > LONGEST:
            os.kill(child, signal.SIGKILL)
            raise TimeoutError("the process did not end")
        time.sleep(0.01)


def finish(work: Callable[[bool], Any], resume: bool) -> None:
    """Let the work run to its end."""
    assert reaped(start(work, resume)) == 0


def bytes_of(folder: Path, pattern: str) -> dict[str, bytes]:
    """Contents of all files that match, by their place."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob(pattern))}
