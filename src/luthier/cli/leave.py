"""The end of a command, at once: Python takes most of a second to take torch apart, and nothing waits for it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn


def may_hurry() -> bool:
    """Whether the process may end without Python's own end: torch is there, and no thread, debugger or process group is."""
    torch = sys.modules.get("torch")
    if torch is None or sys.gettrace() is not None or sys.getprofile() is not None:
        return False
    alone = all(t.daemon or t is threading.main_thread() for t in threading.enumerate())
    return alone and not (torch.distributed.is_available() and torch.distributed.is_initialized())


def leave(code: int) -> NoReturn:
    """End the process with this exit code, after what was registered for its end and with all output written."""
    if not may_hurry():
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(code)  # Python says so, with a code of its own
    atexit._run_exitfuncs()  # type: ignore[attr-defined]
    os._exit(code)
