"""The `embedding-store` command: look at a store, move tags, bring vectors in and out, check and tidy the files.

Exit codes: 0 done, 1 the store says no (not found, corrupt: one line on stderr), 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import tyro

from embedding_store.cli import changing, looking
from embedding_store.errors import StoreError


def main(words: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    functions = (
        looking.ls,
        looking.show,
        looking.history,
        looking.diff,
        changing.tag,
        changing.rollback,
        changing.compact,
        changing.expire,
        changing.retract,
        changing.clean,
        looking.verify,
        changing.import_,
        looking.export,
        looking.bench,
    )
    commands: dict[str, Callable[..., int]] = {function.__name__.rstrip("_"): function for function in functions}
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands, prog="embedding-store", description="Versioned entity vectors.", args=words
        )
    except BrokenPipeError:  # who reads what this prints has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except StoreError as error:
        print(f"embedding-store: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"embedding-store: {error.filename or 'the system says'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("embedding-store: stopped; nothing half-done is visible", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
