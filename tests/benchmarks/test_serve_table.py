"""The benchmark of a served table at a size at which it says nothing but that it works."""

import json

import pytest
import torch

from benchmarks import serve_table
from benchmarks.serve_table import DiskFullError, Options, main

SMALL = Options(
    rows=2_000,
    dim=16,
    dtypes=("int4", "float16"),
    batch=64,
    batches=2,
    items=20,
    requests=5,
    rounds=1,
    swaps=2,
    users=300,
    market_items=500,
)


@pytest.mark.long
def test_each_dtype_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_table, "SETTLE_S", 0.0)
    threads = torch.get_num_threads()
    main(SMALL)
    assert torch.get_num_threads() == threads
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["dtype"] for line in lines] == ["int4", "float16"]
    four, sixteen = lines
    assert sixteen["bytes_a_row"]["all"] - four["bytes_a_row"]["all"] == pytest.approx(2 * 16 - 16 / 2 - 8, abs=1)
    assert 0.01 < four["l2_error"] < 0.2
    assert sixteen["l2_error"] < 0.001
    for line in lines:
        assert min(line["lookups_per_s"].values()) > 0
        assert line["requests_during_swap"] > 0
        assert line["request_ms_during_swap"]["p99"] >= line["request_ms_during_swap"]["p50"] > 0


def test_a_disk_that_is_too_small_is_named() -> None:
    with pytest.raises(DiskFullError, match="GiB are needed: fewer --rows"):
        main(Options(rows=10**12))
