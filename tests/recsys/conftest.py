"""The `recsys` command, called in this process."""

import sys
from collections.abc import Callable

import pytest

from recsys import cli

Run = Callable[..., int]


@pytest.fixture
def recsys(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command with these arguments and return its exit code; what is no error of ours passes through."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["recsys", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run
