"""EntityEmbedding: the ways in which models are run: compiled, exported, on ranks, with some vectors on a GPU."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from embedding_store import EmbeddingStore, EntityEmbedding, Hits, InvalidArgumentError
from tests.distributed import run_ranks
from tests.embedding_store.nn.layers import CUDA, IDS, expected, make_ranker, publish

QUICK_COMPILE = {"aot_inductor.precompile_headers": False, "aot_inductor.compile_wrapper_opt_level": "O0"}
"""AOTInductor's options where one program is compiled, and its speed does not matter."""


def test_compiles_without_a_graph_break(both: EmbeddingStore):
    publish(both)
    ranker = make_ranker(both).eval()
    compiled = torch.compile(ranker, fullgraph=True, backend="aot_eager")
    for batch in (IDS.flatten(), IDS[0]):
        torch.testing.assert_close(compiled(batch, batch), ranker(batch, batch))
    ranker.train()
    compiled(IDS[0], IDS[1]).sum().backward()
    assert all(parameter.grad is not None for parameter in ranker.parameters())


def test_compiled_code_drops_entities_alike(both: EmbeddingStore):
    layer = EntityEmbedding(publish(both), found_feature=True, entity_dropout=0.5)
    compiled = torch.compile(layer, fullgraph=True)
    ids = torch.tensor([7, 1]).repeat(100)
    outcomes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        got = compiled(ids)
        assert (got[::2] == got[0]).all()
        assert (got[1::2] == got[1]).all()
        outcomes.add((bool(got[0].any()), bool(got[1].any())))
    assert len(outcomes) == 4


def test_exports_with_any_batch_size(both: EmbeddingStore, tmp_path: Path):
    publish(both)
    ranker = make_ranker(both).eval()
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(ranker, (IDS[0], IDS[1]), dynamic_shapes=(batch, batch))
    torch.export.save(program, tmp_path / "ranker.pt2")
    loaded = torch.export.load(tmp_path / "ranker.pt2")
    for ids in (IDS.flatten(), IDS[0], IDS[0, :1]):
        want = ranker(ids, ids)
        torch.testing.assert_close(program.module()(ids, ids), want)
        torch.testing.assert_close(loaded.module()(ids, ids), want)


@pytest.mark.skipif(torch.__version__.startswith("2.11."), reason="its AOTInductor gives ops another dtype")
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_runs_without_python(both: EmbeddingStore, tmp_path: Path):
    publish(both)
    ranker = make_ranker(both).eval()
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(ranker, (IDS[0], IDS[1]), dynamic_shapes=(batch, batch))
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "ranker.pt2"), inductor_configs=QUICK_COMPILE
    )
    loaded = torch._inductor.aoti_load_package(package)
    for ids in (IDS.flatten(), IDS[0]):
        torch.testing.assert_close(loaded(ids, ids), ranker(ids, ids))


def _train_a_step(path: str) -> tuple[Tensor, Tensor]:
    """One step of DistributedDataParallel, which broadcasts every buffer it finds."""
    store = EmbeddingStore(path)
    ranker = make_ranker(store)
    ranker.users.entity_dropout = 0.0
    model = nn.parallel.DistributedDataParallel(ranker)
    ids = IDS[torch.distributed.get_rank()]
    model(ids, ids).sum().backward()
    return ranker.users.series[0].missing.grad, ranker.users(IDS)


def test_trains_on_two_ranks(both: EmbeddingStore, tmp_path: Path):
    publish(both)
    (one, features), (other, others) = run_ranks(_train_a_step, 2, str(tmp_path / "store"))
    assert torch.equal(one, other)
    assert one.any()
    assert torch.equal(features, others)


@pytest.mark.parametrize("missing", ["zeros", "mean"])
def test_a_layer_within_a_budget_gives_the_same(both: EmbeddingStore, missing: str):
    snapshots = publish(both)
    hot_ids = {"user_ctr": torch.tensor([7])}
    layer = EntityEmbedding(snapshots, missing=missing, gpu_bytes={"user_ctr": 256 + 12}, hot_ids=hot_ids)
    assert layer.tiers == {}  # on the CPU the files are mapped
    for series in layer._series():
        series.hold(series._copied(series.snapshot, series.table, torch.device("cpu")))  # as `to` does for a GPU
    expect = torch.cat(expected(snapshots, missing), -1)
    assert torch.equal(layer(IDS), expect)
    assert layer.tiers["user_ctr"].hits() == Hits(2, 2, 2, 2)
    assert set(layer.tiers) == {"user_ctr"}
    assert copy.deepcopy(layer).tiers["user_ctr"] is layer.tiers["user_ctr"]
    with pytest.raises(InvalidArgumentError, match="take it to the CPU to export it"):
        torch.export.export(layer, (IDS,))
    again = pickle.loads(pickle.dumps(layer))
    assert again.tiers == {}
    assert torch.equal(again(IDS), expect)
    assert [series.budget for series in again._series()][1] is None
    assert layer.to(torch.float64).tiers == layer.tiers


def test_budgets_that_cannot_be_are_refused(both: EmbeddingStore):
    snapshots = publish(both)
    with pytest.raises(InvalidArgumentError, match="gpu_bytes is one for 2 series: give each its own"):
        EntityEmbedding(snapshots, gpu_bytes=10)
    with pytest.raises(InvalidArgumentError, match="hot_ids are given without gpu_bytes"):
        EntityEmbedding(snapshots[:1], hot_ids=IDS[0])
    with pytest.raises(InvalidArgumentError, match="gpu_bytes is -1; use 0 or more"):
        EntityEmbedding(snapshots[:1], gpu_bytes=-1)


@pytest.mark.parametrize("device", [CUDA])
def test_a_layer_within_a_budget_on_a_gpu(both: EmbeddingStore, device: str):
    snapshots = publish(both)
    layer = EntityEmbedding(snapshots, gpu_bytes={"user_ctr": 256 + 12}, hot_ids={"user_ctr": torch.tensor([7])})
    layer.to(device)
    assert torch.equal(layer(IDS.to(device)).cpu(), torch.cat(expected(snapshots, "zeros"), -1))
    assert layer.tiers["user_ctr"].hits() == Hits(2, 2, 2, 2)
    assert layer.to("cpu").tiers == {}
