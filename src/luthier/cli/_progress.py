"""Progress of a run on the terminal: bar, ETA, tokens per second, loss; plain lines where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any


class Progress:
    """An `on_event` callback that draws; use as a context manager."""

    def __init__(self, title: str = "training") -> None:
        self.title, self.bar, self.task, self.last = title, None, None, 0.0
        self.tokens = 0

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(stderr=True)
        if self.console.is_terminal:
            self.bar = Bar(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                           TimeRemainingColumn(), TextColumn("{task.fields[told]}"), console=self.console)  # fmt: skip
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Draw one event of the engine or the recipe."""
        if event["kind"] == "note":
            self.console.print(f"  {event['text']}", style="dim", highlight=False, markup=False, soft_wrap=True)
        elif event["kind"] == "step":
            self._step(event)

    def _step(self, event: Mapping[str, Any]) -> None:
        unit = event.get("unit", "tokens")
        self.tokens += int(event[unit])
        short = {"tokens": "tok"}.get(unit, unit)
        told = f"loss {event['loss']:.4f}  {self.tokens / max(event['seconds'], 1e-9):,.0f} {short}/s"
        if "reward" in event:
            told += f"  reward {event['reward']:.3f}"
        if self.bar is not None:
            if self.task is None:
                self.task = self.bar.add_task(self.title, total=event["steps"], told="")
            self.bar.update(self.task, completed=event["step"], told=told)
        elif event["seconds"] - self.last > 10 or event["step"] == event["steps"]:
            self.last = event["seconds"]
            left = event["seconds"] / event["step"] * (event["steps"] - event["step"])
            print(f"  step {event['step']}/{event['steps']}  {told}  {left:.0f} s left", file=sys.stderr, flush=True)
