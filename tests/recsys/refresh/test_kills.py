"""Real processes that are killed with SIGKILL: whatever the moment, the same call again ends with the same store."""

import os
import pathlib
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.refresh import cycle
from recsys.refresh.arms import cross_series
from recsys.refresh.cycle import refresh_upstream
from recsys.train.distributed import Environment
from tests.processes import forkserver
from tests.recsys.refresh.catalogue_example import FLAGGED, config, deliver, has, item_rows, noon
from tests.recsys.refresh.daily_example import (
    DAYS,
    PLAIN,
    change,
    contents,
    records,
    start_run,
    write_day,
)

DAILY = config(time_to_live_days=2, cross=True)
TRAINING = replace(DAILY.upstream.training, checkpoint_every=2)
CONFIG = replace(DAILY, upstream=replace(DAILY.upstream, training=TRAINING))
"""With a checkpoint within each day's training too."""
GAPS = (1, 2, 3, 5, 7, 11, 4, 13, 6, 17, 9, 19, 8, 23, 10, 29)
"""Durable steps between one kill and the next."""


def _kill_at(step: int) -> None:
    """Let this process die just before its `step`-th file appears, is renamed, or goes."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    for owner, name in ((os, "link"), (pathlib.Path, "rename"), (pathlib.Path, "replace"), (shutil, "rmtree")):
        setattr(owner, name, counted(getattr(owner, name)))


def _refresh(data: Path, out: Path, step: int | None) -> None:
    torch.set_num_threads(1)  # as in the process of the unbroken run: sums end in the same bits
    cycle.quality_page.write_pages = lambda folder, upstream: None  # drawing takes longer than a tiny cycle
    if step is not None:
        _kill_at(step)
    refresh_upstream(CONFIG, data, out, every=True)


@pytest.fixture(scope="module")
def start() -> Callable[[Path, Path, int | None], BaseProcess]:
    """Starts a refresh in a process of its own, at once: it is forked off one that has imported everything."""
    context = forkserver()

    def begin(data: Path, out: Path, step: int | None) -> BaseProcess:
        process = context.Process(target=_refresh, args=(data, out, step))
        process.start()
        return process

    return begin


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, environment: Environment) -> tuple[Path, Path]:
    """Data, and what a run that nothing disturbs makes of them: three days, a gap, a row that cannot be read, entities
    that expire, that have no event, and that are withdrawn."""
    data, out = start_run(tmp_path_factory.mktemp("unbroken"), [DAYS[0], DAYS[1], DAYS[3]], environment)
    FLAGGED.save(data / "schema.toml")
    deliver(data, DAYS[0], item_rows([0, 555, 556], noon(DAYS[0]), gone=[1, 0, 0]))
    deliver(data, DAYS[2], item_rows([555, 556], noon(DAYS[2]), gone=[1, 0]))
    change(data / "days" / DAYS[1] / "part-0.parquet", {5: {"click": 2}})
    shutil.copytree(out, out.with_name("before"))
    refresh_upstream(CONFIG, data, out, every=True)
    assert has(out, [0, 555, 556]) == [False, False, True]
    return data, out


def _count_files(folder: Path) -> int:
    return sum(len(files) for *_, files in os.walk(folder))


def _assert_same(out: Path, unbroken: Path) -> None:
    assert contents(out) == contents(unbroken)
    assert [record.day for record in records(out)] == [record.day for record in records(unbroken)]
    assert [record.versions for record in records(out)] == [record.versions for record in records(unbroken)]
    # Not in which folders: those are named by what they went on from, and a training begun anew is another one.
    steps, expected = ([Path(record.checkpoint).name for record in records(folder)] for folder in (out, unbroken))
    assert steps == expected
    assert [record.quarantined for record in records(out)] == [{}, {DAYS[1]: 1}, {}]


def test_killed_before_one_durable_step_after_the_other(
    unbroken: tuple[Path, Path], start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    data, expected = unbroken
    out = Path(shutil.copytree(expected.with_name("before"), tmp_path / "out"))
    kills = 0
    for step in (*GAPS, None):
        process = start(data, out, step)
        process.join(600)
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert kills >= 8
    _assert_same(out, expected)


def test_killed_at_any_time(unbroken: tuple[Path, Path], start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    """One that comes to its end before the kill, which may come late, is followed by one that begins anew."""
    data, expected = unbroken
    draw, kills, ended = random.Random(0), 0, True
    for number in range(100):
        if ended:
            out = Path(shutil.copytree(expected.with_name("before"), tmp_path / str(number)))
        process = start(data, out, None)
        files = _count_files(out) + draw.randint(1, 12)
        while _count_files(out) < files and process.is_alive():
            time.sleep(0.001)
        process.join(draw.uniform(0, 0.1))
        process.kill()
        process.join(600)
        ended = process.exitcode == 0
        kills += process.exitcode == -signal.SIGKILL
        if kills == 5:
            break
    assert kills == 5
    process = start(data, out, None)
    process.join(600)
    assert process.exitcode == 0
    _assert_same(out, expected)


@pytest.fixture(scope="module")
def corrected(
    unbroken: tuple[Path, Path], start: Callable[..., BaseProcess], tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, Any]:
    """What the store holds after one correction of the newest day."""
    folder = tmp_path_factory.mktemp("corrected")
    data, out = (Path(shutil.copytree(each, folder / each.name)) for each in unbroken)
    write_day(data, DAYS[3], seed=51)
    process = start(data, out, None)
    process.join(600)
    assert process.exitcode == 0
    return contents(out)


@pytest.mark.parametrize("step", [6, 8, 10, 12, 14])
def test_killed_in_a_correction_that_is_followed_by_another(
    unbroken: tuple[Path, Path],
    corrected: dict[Any, Any],
    start: Callable[..., BaseProcess],
    tmp_path: Path,
    step: int,
) -> None:
    """Users and items stay a pair, of one version and one content, whatever was left half-way; and so do their cross
    representations."""
    data, out = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in unbroken)
    write_day(data, DAYS[3], seed=50)
    process = start(data, out, step)
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    write_day(data, DAYS[3], seed=51)
    process = start(data, out, None)
    process.join(600)
    assert process.exitcode == 0
    found = contents(out)
    for pair in (PLAIN, cross_series("ctr")):
        versions = {_newest(found, name)[0] for name in pair}
        assert len(versions) == 1
        for name in pair:
            assert found[name, "tags"] == {"prod": max(versions)}
            assert _newest(found, name)[1] == _newest(corrected, name)[1]


def _newest(found: dict[Any, Any], name: str) -> tuple[int, Any]:
    """Version and content of a series' newest snapshot."""
    version = max(key[1] for key in found if key[0] == name and isinstance(key[1], int))
    return version, next(value for key, value in found.items() if key[:2] == (name, version))
