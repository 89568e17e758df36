"""benchmarks/gpu_lookup.py without a GPU: its options, its draws and its arithmetic. The rest needs one."""

from __future__ import annotations

import pytest
import torch
import tyro

from benchmarks.gpu_lookup import ID_STEP, Options, Timing, draw, main, ratios


def test_options_are_read_and_checked():
    options = tyro.cli(Options, args=["--rows", "100", "--keys", "10", "20", "--hot", "0.5"])
    assert (options.rows, options.keys, options.hot) == (100, (10, 20), 0.5)
    assert Options().rows >= 16_000_000
    with pytest.raises(ValueError, match=r"must be at least 1, one is 0"):
        Options(keys=(1000, 0))
    with pytest.raises(ValueError, match=r"hot is 1.0; give a share"):
        Options(hot=1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        main(Options())


@pytest.mark.parametrize("kind", ["uniform", "zipf 1.05"])
def test_draws_are_rows_of_the_table_and_their_ids(kind: str):
    batches = draw(kind, 5000, Options(rows=1000, batches=3), device="cpu")
    assert len(batches) == 3
    for batch in batches:
        assert 0 <= int(batch.rows.min()) <= int(batch.rows.max()) < 1000
        assert torch.equal(batch.ids, batch.rows * ID_STEP)
        assert torch.equal(batch.rows32.long(), batch.rows)
        assert torch.equal(batch.offsets32, torch.arange(5001, dtype=torch.int32))
    share = float((batches[0].rows == 0).float().mean())
    assert share > 0.05 if kind == "zipf 1.05" else share < 0.01
    assert not torch.equal(batches[0].rows, batches[1].rows)


def test_ratios_compare_like_with_like():
    def timing(what: str, ids: str, keys: int, time: float) -> Timing:
        return Timing(what, ids, keys, time, 9.0, 9.0, 9.0)

    timings = [
        timing("store float32", "uniform", 10, 8.0),
        timing("roof float32: index_select", "uniform", 10, 7.0),
        timing("roof float32: compiled gather", "uniform", 10, 6.0),
        timing("roof float32: index_select", "uniform", 20, 1.0),
        timing("fbgemm float32, known rows", "uniform", 10, 12.0),
        timing("fbgemm int8 -> float16, known rows", "uniform", 10, 1.0),
        timing("store float32, 10% hot", "zipf 1.05", 10, 20.0),
        timing("fbgemm float32, known rows", "zipf 1.05", 10, 1.0),
        timing("fbgemm float32, UVM with a cache of 10%", "zipf 1.05", 10, 50.0),
    ]
    assert ratios(timings) == {
        "store float32 / roof, uniform, 10 keys": 0.75,
        "store float32 / fbgemm, uniform, 10 keys": 1.5,
        "store float32, 10% hot / fbgemm, zipf 1.05, 10 keys": 2.5,
    }
    assert timings[0].rows_per_second == pytest.approx(10 / 8e-6)
