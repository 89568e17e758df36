import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recsys import screening
from recsys.data.errors import DataError
from recsys.data.scan import Findings, Part
from recsys.screening import read_as_0, screen, summaries
from recsys.train.distributed import current_environment
from tests.distributed import run_ranks
from tests.recsys.data.test_quarantine import DAY, SCHEMA, row, write


def part(folder: Path, rows: int = 30) -> Part:
    """Two files: in the second, row 4 is bad and row 6 has no price; the first has a vector of nulls."""
    folder.mkdir(exist_ok=True)
    events = [row(number) for number in range(rows)]
    events[3] |= {"look": None}
    events[14] |= {"click": 2}
    events[16] |= {"price": None}
    first, second = events[:10], events[10:]
    files = [write(folder / "a.parquet", [first[:4], first[4:]]), write(folder / "b.parquet", [second[:7], second[7:]])]
    return Part(files=files, schema=SCHEMA, window=DAY)


def test_what_is_written_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part_ = part(tmp_path / "data")
    found = screen(tmp_path / "out", "log", [part_], tmp_path)
    assert [(bad.file.name, bad.row, bad.column) for bad in found.bad] == [("b.parquet", 4, "click")]
    assert {file.name: rows.tolist() for file, rows in found.quarantine.rows.items()} == {"b.parquet": [4]}
    assert read_as_0(found) == {"price": 1, "look": 1}
    path = tmp_path / "out/quarantine/log.json"
    (entry,) = json.loads(path.read_text())
    assert entry["quarantined"] == [
        {
            "file": "data/b.parquet",
            "row": 4,
            "column": "click",
            "problem": "the label is 2; it must be 0 or 1. Where it means nothing, name a 0 / 1 column in `valid`",
            "stray": False,
        }
    ]
    assert entry["read_as_0"] == {"price": {"values": 1, "of": 29}, "look": {"values": 1, "of": 29}}
    assert entry["of"]["window"] == ["1970-01-02", DAY.start, DAY.end]
    assert capsys.readouterr().out.splitlines() == [
        f"log: 1 of 30 rows quarantined: see {path}",
        "log: feature price: 1 of 29; feature look: 1 of 29 values null or NaN, read as 0",
    ]
    assert summaries(tmp_path / "out") == {"log": {"rows": 30, "quarantined": 1, "read_as_0": {"price": 1, "look": 1}}}


def test_nothing_to_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / "a.parquet", [[row(0)]])]
    screen(tmp_path, "log", [Part(files=files, schema=SCHEMA)], tmp_path)
    assert capsys.readouterr().out == ""
    assert summaries(tmp_path) == {"log": {"rows": 1, "quarantined": 0, "read_as_0": {}}}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """The parts that are read from now on."""
    parts: list[Part] = []
    scan = screening.scan

    def count(part: Part, *rest: int) -> Findings:
        parts.append(part)
        return scan(part, *rest)

    monkeypatch.setattr(screening, "scan", count)
    return parts


def test_the_same_rows_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, out = counted(monkeypatch), tmp_path / "out"
    log = part(tmp_path / "data")
    first = screen(out, "log", [log], tmp_path)
    assert screen(out, "log", [log], tmp_path) == first
    looser = replace(log, schema=replace(SCHEMA, max_bad_rows=0.5, outcomes=("x",)))
    assert screen(out, "log", [looser], tmp_path) == first
    assert len(read) == 1
    shutil.copytree(tmp_path / "data", tmp_path / "else/data")  # it may be moved
    moved = replace(log, files=[tmp_path / "else/data" / file.name for file in log.files])
    assert [bad.file for bad in screen(out, "log", [moved], tmp_path / "else").bad] == [moved.files[1]]
    assert len(read) == 1
    for changed in (
        replace(log, schema=SCHEMA.select(features=("price",))),
        replace(log, window=None),
        replace(log, files=log.files[1:]),
    ):
        screen(out, "log", [changed], tmp_path)
        screen(out, "log", [log], tmp_path)
    assert len(read) == 7
    mended = pq.ParquetFile(log.files[1]).read().to_pylist()
    write(log.files[1], [[each | {"click": 1} for each in mended]])
    assert not screen(out, "log", [log], tmp_path).bad
    assert len(read) == 8


def test_a_stricter_share_is_a_matter_of_what_was_found(tmp_path: Path) -> None:
    log = part(tmp_path / "data")
    screen(tmp_path, "log", [log], tmp_path)
    with pytest.raises(DataError, match=r"b.parquet: column 'click', row 4: .* At least 1 of 30 .* = 0 lets 0 pass"):
        screen(tmp_path, "log", [replace(log, schema=replace(SCHEMA, max_bad_rows=0))], tmp_path)


def test_each_part_has_its_share(tmp_path: Path) -> None:
    log = part(tmp_path / "data")
    apart = [replace(log, files=[file]) for file in log.files]
    whole = screen(tmp_path, "log", [*apart, log], tmp_path)
    assert whole.rows == 60
    assert whole.quarantine.count(log.files) == 1
    bad = write(tmp_path / "data/c.parquet", [[row(0), row(1) | {"click": 3}, row(2) | {"click": 4}]])
    with pytest.raises(DataError, match=r"c.parquet: column 'click', row 1: .* At least 2 of 3 rows"):
        screen(tmp_path, "more", [log, replace(log, files=[bad])], tmp_path)
    assert not (tmp_path / "quarantine/more.json").exists()


def on_ranks(out: Path, root: Path, log: Part) -> list[Findings]:
    """Twice: read, and looked up."""
    return [screen(out, "log", [log], root, current_environment()) for _ in range(2)]


def test_ranks_share_the_reading_and_know_the_same(tmp_path: Path) -> None:
    log = part(tmp_path / "data")
    alone = screen(tmp_path / "alone", "log", [log], tmp_path)
    for told in run_ranks(on_ranks, 2, tmp_path / "two", tmp_path, log):
        assert told == [alone, alone]
    found, expected = (tmp_path / name / "quarantine/log.json" for name in ("two", "alone"))
    assert found.read_text() == expected.read_text()


def unreadable_on_one(out: Path, root: Path, log: Part) -> str:
    environment = current_environment()

    def scan(*_: object) -> Findings:
        raise DataError("pages of b.parquet cannot be read")

    if environment.rank == 1:
        screening.scan = scan
    with pytest.raises(DataError) as error:
        screen(out, "log", [log], root, environment)
    return str(error.value)


def test_what_one_rank_cannot_read_is_an_error_of_all(tmp_path: Path) -> None:
    log = part(tmp_path / "data")
    told = run_ranks(unreadable_on_one, 2, tmp_path / "out", tmp_path, log)
    assert told == ["pages of b.parquet cannot be read"] * 2
