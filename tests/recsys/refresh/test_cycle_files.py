"""What a cycle reads of the days' files."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.refresh import checksums, fingerprints
from tests.recsys.refresh.daily_example import DAYS, contents, daily_config, records, refresh, write_day

CONFIG = daily_config()
pytestmark = pytest.mark.usefixtures("no_pages")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The days whose files are read for their fingerprints; none of the files was written just now."""
    days: list[str] = []
    crc, crc_of = fingerprints._crc, checksums._crc_of
    monkeypatch.setattr(fingerprints, "_crc", lambda path: days.append(path.parent.name) or crc(path))
    monkeypatch.setattr(checksums, "_crc_of", lambda path, *of: days.append(path.parent.name) or crc_of(path, *of))
    monkeypatch.setattr(fingerprints, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + 3_600 * 10**9))
    return days


def test_a_call_reads_new_days_alone(run: tuple[Path, Path], read: list[str]) -> None:
    data, out = run
    assert refresh(CONFIG, data, out) == []
    assert read == DAYS[:2], "the fixture has copied them"
    read.clear()
    assert refresh(CONFIG, data, out) == []
    assert read == []
    write_day(data, DAYS[2])
    assert refresh(CONFIG, data, out, every=True) == [DAYS[2]]
    assert read == [DAYS[2]]


def test_moved_data_are_no_correction(run: tuple[Path, Path], read: list[str]) -> None:
    data, out = run
    refresh(CONFIG, data, out)
    before = contents(out)
    read.clear()
    moved = Path(shutil.copytree(data, data.with_name("moved"), copy_function=shutil.copyfile))
    shutil.rmtree(data)
    assert [refresh(CONFIG, moved, out), refresh(CONFIG, moved, out)] == [[], []]
    assert read == DAYS[:2]
    assert contents(out) == before


def test_a_day_written_anew_in_its_place_is_a_correction(run: tuple[Path, Path], read: list[str]) -> None:
    """Even of equal size and with the old time of modification."""
    data, out = run
    (path,) = (data / "days" / DAYS[1]).iterdir()
    table = pq.read_table(path, partitioning=None)
    age = table.column_names.index("age")

    def write(table: pa.Table) -> None:
        pq.write_table(table, path, compression="none", use_dictionary=False)

    write(table)
    assert refresh(CONFIG, data, out) == [DAYS[1]]
    before, first = path.stat(), records(out)[-1].fingerprint
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the file system's clock has ticked
        write(table.set_column(age, "age", pc.add(table["age"], pa.scalar(1, pa.float32()))))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert refresh(CONFIG, data, out) == [DAYS[1]]
    assert records(out)[-1].fingerprint != first
