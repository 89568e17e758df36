"""Splits by time, and the config of the study that reads them."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import LogConfig, StudyConfig, from_dict
from recsys.data.files import find_files
from recsys.data.log.prepare import Prepared, prepare_log
from recsys.data.log.splits import NAMES, Part, Splits, patterns

START = 1_709_251_200_000
"""ms; 1 March 2024."""
DAY = 86_400_000


def prepare(folder: Path, times: np.ndarray, **changes: Any) -> tuple[Prepared, StudyConfig, dict[str, list[int]]]:
    """Prepare views and likes at these times; what came of it, the study, and the rows' times in each of its splits."""
    rng = np.random.default_rng(0)
    times = np.sort(times)
    who, what = rng.integers(0, 9, len(times)), rng.integers(0, 30, len(times))
    likes = rng.random(len(times)) < 0.4
    table = {
        "who": np.concatenate([who, who[likes]]),
        "what": np.concatenate([what, what[likes]]),
        "at": np.concatenate([times, times[likes]]),
        "did": ["view"] * len(times) + ["like"] * int(likes.sum()),
    }
    pq.write_table(pa.table(table), folder / "log.parquet")
    document = {
        "log": {"files": ["log.parquet"], "user": "who", "item": "what", "time": "at", "action": "did"},
        "actions": {"view": {}, "like": {"given": "view", "within": "2h"}},
        "negatives": {"ratio": 1},
        "features": {"last": 2, "windows": []},
    }
    for name, section in changes.items():
        document[name] |= section
    found = prepare_log(from_dict(LogConfig, document), folder, folder / "out")
    study = StudyConfig.load(folder / "out/study.toml")
    files = {"upstream": study.upstreams[0].source.events}
    files |= {name: getattr(study.rankers, name) for name in NAMES[1:]}
    times_of = {
        name: [
            time
            for file in find_files(folder / "out", globs)
            for time in pq.ParquetFile(file).read(["timestamp"])["timestamp"].to_pylist()
        ]
        for name, globs in files.items()
    }
    return found, study, times_of


def spread(days: int, rows: int = 1200) -> np.ndarray:
    return START + np.random.default_rng(1).integers(0, days * DAY, rows)


def test_whole_days_one_split_after_the_other(tmp_path: Path) -> None:
    found, study, times = prepare(tmp_path, spread(20))
    assert all(max(times[left]) < min(times[right]) for left, right in pairwise(NAMES))
    assert [len(times[name]) for name in NAMES] == [found.splits.rows(name) for name in NAMES]
    shares = np.array([len(times[name]) for name in NAMES]) / sum(map(len, times.values()))
    assert shares == pytest.approx([0.5, 0.25, 0.1, 0.15], abs=0.05)
    days, spans = study.daily()
    assert (days.first, days.last) == (spans.train[0], spans.test[1])
    assert spans.test[1] == "2024-03-20"
    assert [upstream.tasks for upstream in study.upstreams] == [("view",), ("like", "view")]
    for name in ("train", "validation", "test"):
        dates = {datetime.fromtimestamp(time / 1000, UTC).date().isoformat() for time in times[name]}
        assert (min(dates), max(dates)) == getattr(spans, name)


def test_days_are_those_of_the_time_zone(tmp_path: Path) -> None:
    found, study, _ = prepare(tmp_path, spread(9), log={"utc_offset_hours": 8})
    assert found.splits.parts[-1].name == "2024-03-10"
    assert study.daily()[0].utc_offset_hours == 8
    for file in find_files(tmp_path / "out", ["events/*/*.parquet"]):
        rows = pq.ParquetFile(file).read().to_pylist()
        local = [datetime.fromtimestamp(row["timestamp"] / 1000 + 8 * 3600, UTC) for row in rows]
        assert {time.date().isoformat() for time in local} == {file.parent.name}
        assert [(row["hour"], row["timestamp"]) for row in rows] == [
            (time.hour, row["timestamp"]) for time, row in sorted(zip(local, rows, strict=True), key=lambda x: x[0])
        ]


def test_labels_that_are_known_late_leave_a_gap(tmp_path: Path) -> None:
    late = {"actions": {"view": {}, "like": {"given": "view", "within": "2d"}}}
    _, study, times = prepare(tmp_path, spread(20), **late)
    for left, right in pairwise(NAMES):
        assert min(times[right]) - max(times[left]) > 2 * DAY
    assert max(times["test"]) < START + 18 * DAY
    assert "Labels are known up to 2 days after their row" in study.note


def test_a_log_of_a_day_is_split_within_it(tmp_path: Path) -> None:
    found, study, times = prepare(tmp_path, START + np.random.default_rng(1).integers(0, 400, 900) * 60_000)
    assert [part.name for part in found.splits.parts] == list(NAMES)
    assert all(max(times[left]) < min(times[right]) for left, right in pairwise(NAMES))
    assert study.spans is None
    assert study.rankers.publish_delay_ms == 0


def test_a_day_with_a_single_row_has_one_rank(tmp_path: Path) -> None:
    times = np.concatenate([spread(20), [START + 20 * DAY]])
    _, study, _ = prepare(tmp_path, times, negatives={"ratio": 0})
    assert study.ranks == 1


def test_the_same_log_has_the_same_bytes_and_a_second_call_replaces_the_first(tmp_path: Path) -> None:
    def contents() -> dict[str, bytes]:
        files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in files}

    prepare(tmp_path, spread(8))
    first = contents()
    assert not any(".work" in name for name in first)
    prepare(tmp_path, spread(8))
    assert contents() == first


@pytest.mark.parametrize(
    ("days", "chosen", "expected"),
    [
        (["2024-02-28", "2024-02-29"], ["2024-02-28", "2024-02-29"], ["2024-02-*"]),
        (["2024-02-01", "2024-02-03", "2024-02-05"], ["2024-02-01", "2024-02-03"], ["2024-02-0[13]"]),
        (
            ["2024-02-28", "2024-03-08", "2024-03-09", "2024-03-10", "2024-03-11"],
            ["2024-02-28", "2024-03-08", "2024-03-09", "2024-03-10"],
            ["2024-02-*", "2024-03-0[89]", "2024-03-10"],
        ),
    ],
)
def test_patterns(days: list[str], chosen: list[str], expected: list[str]) -> None:
    parts = {day: Part(day, 0, 1) for day in days}
    splits = Splits(tuple(parts.values()), {"train": tuple(parts[day] for day in chosen)}, True, ())
    assert patterns(splits, "train") == tuple(f"events/{pattern}/*.parquet" for pattern in expected)
