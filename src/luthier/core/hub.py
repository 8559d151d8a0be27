"""The hub of models and data sets, asked only where it answers: without a network its client would retry for half a minute."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 8.0
"""How long a connection may take: three tries of a lost first packet, so that a slow network passes."""
_KEPT = 60.0


def _door(endpoint: str) -> tuple[str, int]:
    """Host and port that a request to the endpoint connects to: its own, or those of the proxy in between."""
    to = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(to.scheme) or proxies.get("all")
    if proxy and to.hostname and not proxy_bypass(to.hostname):
        to = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    return to.hostname or "", to.port or (443 if to.scheme == "https" else 80)


@lru_cache(maxsize=8)
def _why(host: str, port: int, seconds: float, when: int) -> str:
    said = [f"no connection within {seconds:g} s"]

    def knock() -> None:
        try:
            socket.create_connection((host, port), seconds).close()
            said.append("")
        except OSError as fault:
            said.append((fault.strerror or str(fault)).strip() or type(fault).__name__)

    thread = threading.Thread(target=knock, daemon=True)  # the look-up of a name has no limit of its own
    thread.start()
    thread.join(seconds)
    return said[-1]


def unreachable(endpoint: str, seconds: float = SECONDS) -> str:
    """Why no connection to the endpoint (an URL) comes about, in words; empty if one does. The answer is kept for a minute."""
    host, port = _door(endpoint)
    why = _why(host, port, seconds, int(time.monotonic() // _KEPT))
    return f"{endpoint} cannot be reached ({why})" if why else ""


@contextmanager
def hub(source: str) -> Generator[str]:
    """Within, the hub's client looks at its downloads alone where the hub cannot be reached; gives the reason, or "".

    Nothing is asked where source is a folder here, or in an offline mode that the user chose (HF_HUB_OFFLINE), which stays.
    """
    if Path(source).expanduser().is_dir():
        yield ""
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or not (why := unreachable(constants.ENDPOINT)):
        yield ""
        return
    datasets = sys.modules.get("datasets")
    held: list[Any] = [constants, *([datasets.config] if datasets is not None else [])]
    before = [module.HF_HUB_OFFLINE for module in held]
    try:
        for module in held:
            module.HF_HUB_OFFLINE = True  # what the variable sets; the client has no other switch
        yield why
    finally:
        for module, value in zip(held, before, strict=True):
            module.HF_HUB_OFFLINE = value
