"""Which stage a run is in, and why it is there: a line for each, with a bar where there is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

_WIDTH = 24


class Progress:
    """Counts the stages of a run.

    Args:
        total: stages.
        console: where to; None: the terminal.
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        self._total, self._stage = total, 0
        self._console = console or Console(highlight=False, soft_wrap=True)

    def begin(self, why: str, *, done: bool = False) -> None:
        """Say that the next stage begins, and what it is for; `done`: nothing is left to do of it."""
        filled = round(_WIDTH * self._stage / self._total)
        self._stage += 1
        text = f"{self._stage}/{self._total} {why}{' (done before)' if done else ''}"
        if self._console.is_terminal:
            self._console.print(f"[green]{'━' * filled}[/green][dim]{'━' * (_WIDTH - filled)}[/dim] ", end="")
        self._console.print(text, style="bold", markup=False)
        sys.stdout.flush()


def between(patterns: Sequence[str]) -> str:
    """Files in a few words: `a/2024-01-01/*.parquet to a/2024-01-07/*.parquet`."""
    return patterns[0] if len(patterns) == 1 else f"{patterns[0]} to {patterns[-1]}"
