"""What to do with a run that has come to its end: commands and lines of Python that work as they are printed."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from recsys.folders import store_of


def show_next_steps(out: Path, console: Console | None = None) -> None:
    """Print how to open the report, look up a vector and start with one's own data; the look-up is done on the spot.

    Args:
        out: folder of the run, whose store holds the series `user_ctr`.
        console: where to; None: the terminal.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    lines = lookup_lines(out)

    def say(text: str = "", style: str = "") -> None:
        console.print(text, style=style, markup=False)

    say("\nNext", "bold")
    page = (out / "report.html").resolve().as_uri()
    say("1. Open the report:")
    say(f"   {shown('python', '-m', 'webbrowser', page)}")
    say("2. Look up a vector in Python:")
    for line in lines:
        say(f"   >>> {line}")
    for line in run_lines(lines).splitlines():
        say(f"   {line}", "dim")
    say("3. Take your own data, as in README.md:")
    say(f"   {shown('recsys', 'run', 'mine.toml', '--data', 'DIR', '--out', 'runs/mine')}")
    say("\nMore of this run", "bold")
    for command in more_commands(out):
        say(f"   {command}")


def lookup_lines(out: Path) -> tuple[str, str, str]:
    """Three lines of Python that look up the vectors of two users, and show how they begin."""
    return (
        "from embedding_store import EmbeddingStore",
        f"table = EmbeddingStore({store_of(out)!r}).series('user_ctr').latest().load()",
        "print(table.ids()[:2], table.lookup(table.ids()[:2])[0][:, :4])",
    )


def run_lines(lines: tuple[str, ...]) -> str:
    """What lines of Python print."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec("\n".join(lines), {})  # our own lines, above: what is printed has been run
    return printed.getvalue()


def more_commands(out: Path) -> tuple[str, ...]:
    """Command lines that show more of a run."""
    store = store_of(out)
    return (
        shown("recsys", "report", "--out", str(out)),
        shown("tensorboard", "--logdir", str(out / "upstream")),
        shown("embedding-store", "ls", store),
        shown("embedding-store", "history", store, "user_ctr"),
    )


def shown(command: str, *arguments: str) -> str:
    """A command line for the shell: with the folder of this interpreter where another `command`, or none, is found."""
    own, found = Path(sys.executable).parent / command, shutil.which(command)
    name = command if found and own.exists() and own.samefile(found) else min(str(own), os.path.relpath(own), key=len)
    return shlex.join((name, *arguments))
