"""Processes of tests, forked off one that has imported what all of them need: starting one costs next to nothing."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOADED = [
    *("recsys.refresh.cycle", "torch.utils.tensorboard", "sklearn.metrics"),
    *("pytest", "hypothesis.strategies"),
]
"""The first brings torch, torchrec and the store; the last two are what the files of tests import themselves."""


def forkserver() -> ForkServerContext:
    """Where such processes start. They have the environment that the first of them was started in."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
