"""benchmarks/leave_one_out.py: what its models read, and that the DERM learns what follows what."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import leave_one_out, ncf_derm
from benchmarks.leave_one_out import Options, main, popularity
from benchmarks.ncf import NEGATIVES, Found, Split, leave_last_out, read_split, write_split
from benchmarks.ncf_derm import LABEL, Chosen
from recsys.config import UpstreamConfig

ITEMS, USERS, CHOICES = 120, 60, 12


@pytest.fixture(scope="module")
def split() -> Split:
    """Whoever chose item i chooses i + 1 next; all items are as popular, and some choices have no time."""
    start = np.random.default_rng(0).integers(0, ITEMS, USERS)
    users, step = np.repeat(np.arange(USERS), CHOICES), np.tile(np.arange(CHOICES), USERS)
    times = np.where((step == 3) & (users % 2 == 0), 0, step + 1)
    return leave_last_out(users, (start[users] + step) % ITEMS, times, ITEMS, seed=0)[0]


def test_an_event_reads_what_its_user_chose_before_it_oldest_first(split: Split, tmp_path: Path) -> None:
    Chosen(split, tmp_path, seed=0)
    rows = pq.read_table(tmp_path / "log" / "events").to_pylist()
    undated = set(zip(split.users[split.times == 0], split.items[split.times == 0], strict=True))
    assert len(undated) == USERS // 2
    assert len(rows) == len(split.users) - len(undated)
    for row in rows:
        known = [i for i in chain(split, row["user_id"]) if (row["user_id"], i) not in undated]
        before = known[: known.index(row["item_id"])]
        assert row["last_64"] == before
        assert row["last_4"] == before[-4:]
        assert row[LABEL] == 1


def test_of_users_without_any_time_all_choices_are_events(split: Split, tmp_path: Path) -> None:
    Chosen(replace(split, times=np.zeros_like(split.times)), tmp_path, seed=0)
    assert len(pq.read_table(tmp_path / "log" / "events")) == len(split.users)


def chain(split: Split, user: int) -> list[int]:
    """The training items of a user as they followed each other."""
    mine = split.items[split.users == user]
    held = int(split.held_out[split.tested == user][0])
    return sorted(mine.tolist(), key=lambda item: (item - held) % ITEMS)


def test_what_is_held_out_is_in_no_event(split: Split, tmp_path: Path) -> None:
    Chosen(split, tmp_path, seed=0)
    held = dict(zip(split.tested.tolist(), split.held_out.tolist(), strict=True))
    for row in pq.read_table(tmp_path / "log" / "events").to_pylist():
        assert held[row["user_id"]] not in (row["item_id"], *row["last_64"])


def test_popularity_counts_training_rows(split: Split) -> None:
    scores = popularity(split)
    assert scores.shape == (USERS, 1 + NEGATIVES)
    for row, items in zip(scores, split.candidates, strict=True):
        assert row.tolist() == [(split.items == item).sum() for item in items]


def test_the_command_measures_all_rows_and_the_derm_learns_what_follows(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leave_one_out, "FACTORS", (8,))
    monkeypatch.setattr(leave_one_out, "REGULARIZATION", (1.0,))
    config = ncf_derm.derm_config
    monkeypatch.setattr(ncf_derm, "derm_config", lambda passes, seed: quick(config(passes, seed)))
    data, out = tmp_path / "data", tmp_path / "out"
    write_split(split, np.full(len(split.tested), 99), data)
    main(Options(data=data, out=out, passes=12))
    said = capsys.readouterr().out
    figures = json.loads(said.splitlines()[-1])
    assert {"popularity", "DERM"} <= figures.keys()
    assert 0 <= figures["DERM"][1] <= figures["DERM"][0] <= 1
    assert figures["popularity"][0] == pytest.approx(
        Found.of(read_split(data), popularity(split)).hits().mean(), abs=1e-4
    )
    assert figures["DERM"][0] > 0.3  # by chance 0.1
    assert figures["hr_over_popularity"][1] > 0
    main(Options(data=data, out=out, passes=12))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures, "stopped, the same command goes on"


def quick(config: UpstreamConfig) -> UpstreamConfig:
    """The same in small."""
    loss = replace(config.loss, uniform_negatives=64)
    return replace(config, loss=loss, training=replace(config.training, batch_size=64))
