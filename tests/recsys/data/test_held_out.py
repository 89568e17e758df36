"""Which events are held out of a training, and how the ranks share them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.batch import Batch
from recsys.data.files import find_files
from recsys.data.held_out import ALL_TRAIN, LEAST, HeldOut, HeldOutBatches, hold_out
from recsys.data.quarantine import Quarantine
from recsys.data.stream import EventStream
from tests.recsys.refresh.example import SCHEMA, UNTIMED, events

ROWS = 3000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of small row groups; the second repeats ten events of the first."""
    folder = tmp_path_factory.mktemp("log")
    table = events(ROWS)
    pq.write_table(table.slice(0, 1700), folder / "a.parquet", row_group_size=100)
    pq.write_table(pa.concat_tables([table.slice(0, 10), table.slice(1700)]), folder / "b.parquet", row_group_size=70)
    return find_files(folder, ["*.parquet"])


def keys(batches: list[Batch]) -> list[tuple[int, int, int]]:
    columns = [(b.user_ids.tolist(), b.item_ids.tolist(), b.timestamps.tolist()) for b in batches]
    return [key for column in columns for key in zip(*column, strict=True)]


def share_of(files: list[Path], held: HeldOut, rank: int = 0, world_size: int = 1) -> list[Batch]:
    return list(HeldOutBatches(files, SCHEMA, held, rank=rank, world_size=world_size, transform=lambda batch: batch))


def test_what_is_held_out_does_not_train_and_nothing_is_lost(files: list[Path]) -> None:
    held = hold_out(files, SCHEMA, 0.2)
    assert 0.15 * ROWS < held.count < 0.25 * ROWS
    assert held.judged == (0,)
    options = {"batch_size": 64, "drop_last": False}
    train = keys(list(EventStream(files, SCHEMA, **options, skip=held.rows)))
    judged = keys(share_of(files, held))
    assert len(judged) == held.count
    assert sorted(train + judged) == sorted(keys(list(EventStream(files, SCHEMA, **options))))
    assert not set(train) & set(judged), "an event that is there twice is on one side"


def test_quarantined_rows_stay_out_and_the_others_where_they_are(files: list[Path]) -> None:
    gone = Quarantine({files[1]: np.array([0, 3, 1200])})
    kept, held = hold_out(files, SCHEMA, 0.2), hold_out(files, SCHEMA, 0.2, gone)
    assert np.array_equal(held.rows.of(files[0]), kept.rows.of(files[0]))
    assert set(held.rows.of(files[1])) == set(kept.rows.of(files[1])) - {0, 3, 1200}
    both = gone | held.rows
    assert both.count(files) == held.count + 3


def test_ranks_share_what_one_reads(files: list[Path]) -> None:
    held = hold_out(files, SCHEMA, 0.2)
    whole = keys(share_of(files, held))
    shares = [keys(share_of(files, held, rank, 3)) for rank in range(3)]
    assert [len(share) for share in shares] == [held.count // 3] * 3
    assert [key for share in shares for key in share] == whole[: held.count // 3 * 3]


def test_batches_can_be_read_again(files: list[Path]) -> None:
    def spoilt(batch: Batch) -> Batch:
        batch.sparse.values()[:] = 0
        return batch

    held = hold_out(files, SCHEMA, 0.2)
    batches = HeldOutBatches(files, SCHEMA, held, rank=0, world_size=1, transform=spoilt)
    list(batches)
    batches.seek(0)
    batches._transform = lambda batch: batch
    assert [batch.sparse.values().tolist() for batch in batches] == [
        batch.sparse.values().tolist() for batch in share_of(files, held)
    ]


def test_none_are_held_out_where_they_would_tell_nothing(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    few = LEAST / ROWS
    assert hold_out(files, SCHEMA, few) == ALL_TRAIN
    monkeypatch.setattr("recsys.data.held_out.MOST", 300)
    assert 200 < hold_out(files, SCHEMA, 0.5).count < 400


def test_a_log_without_times(files: list[Path]) -> None:
    assert hold_out(files, UNTIMED, 0.2).count > 0
