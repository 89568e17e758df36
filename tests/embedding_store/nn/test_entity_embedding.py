"""EntityEmbedding: what it computes, what a checkpoint of it holds, and the ways in which models are run."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from embedding_store import (
    EmbeddingStore,
    EntityEmbedding,
    Hits,
    InvalidArgumentError,
    InvalidIdsError,
    NotFoundError,
    PinMismatchError,
    SchemaChangedError,
    SeriesNotFoundError,
    Snapshot,
    VersionExpiredError,
    VersionNotFoundError,
)
from tests.distributed import run_ranks

DIMS = {"user_ctr": 3, "user_cvr": 2}
IDS = torch.tensor([[-5, 7, 1], [2**62, 7, 3]])
"""user_ctr has 7, -5, 2**62; user_cvr has 7 and 1; neither has 3."""
STORED = {"user_ctr": [7, -5, 2**62], "user_cvr": [7, 1]}
QUICK_COMPILE = {"aot_inductor.precompile_headers": False, "aot_inductor.compile_wrapper_opt_level": "O0"}
"""AOTInductor's options where one program is compiled, and its speed does not matter."""
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


def publish(store: EmbeddingStore, seed: int = 1) -> list[Snapshot]:
    """The next version of both series, with vectors of that seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, ids in STORED.items():
        with store.series(name).write(as_of=seed, space="s") as writer:
            writer.append(torch.tensor(ids), torch.randn(len(ids), DIMS[name], generator=generator))
    return [store.series(name).latest() for name in STORED]


def make_store(path: Path) -> EmbeddingStore:
    store = EmbeddingStore(path)
    for name, dim in DIMS.items():
        store.create(name, dim=dim)
    return store


@pytest.fixture
def both(tmp_path: Path) -> EmbeddingStore:
    return make_store(tmp_path / "store")


def expected(snapshots: Sequence[Snapshot], missing: str, ids: Tensor = IDS) -> list[Tensor]:
    """What the layer gives for each series, by way of Table.lookup."""
    results = []
    for snapshot in snapshots:
        vectors, found = snapshot.load().lookup(ids)
        fill = torch.tensor(snapshot.statistics.mean if missing == "mean" else [0.0] * snapshot.dim)
        results.append(torch.where(found[..., None], vectors, fill))
    return results


class Ranker(nn.Module):
    """A small model of two entities."""

    def __init__(self, users: EntityEmbedding, items: EntityEmbedding) -> None:
        super().__init__()
        self.users, self.items = users, items
        self.score = nn.Linear(users.out_dim + items.out_dim, 1)

    def forward(
        self,
        user_ids: Tensor,  # int64 [B]
        item_ids: Tensor,  # int64 [B]
    ) -> Tensor:  # float [B, 1]
        return self.score(torch.cat((self.users(user_ids), self.items(item_ids)), dim=-1).relu())


def make_ranker(store: EmbeddingStore) -> Ranker:
    torch.manual_seed(3)
    users = EntityEmbedding(
        [store.series(name).latest() for name in STORED],
        missing="learned",
        found_feature=True,
        projection=4,
        entity_dropout=0.25,
    )
    return Ranker(users, EntityEmbedding([store.series("user_cvr").latest()], missing="mean"))


@pytest.mark.parametrize("missing", ["zeros", "mean"])
def test_vectors_stand_side_by_side_and_missing_ones_are_filled(both: EmbeddingStore, missing: str):
    snapshots = publish(both)
    layer = EntityEmbedding(snapshots, missing=missing)
    assert layer.out_dim == 5
    assert torch.equal(layer(IDS), torch.cat(expected(snapshots, missing), dim=-1))
    for shape in [(), (0,), (2, 0, 3)]:
        assert layer(torch.full(shape, 7)).shape == (*shape, 5)
    assert list(layer.parameters()) == list(layer.buffers(recurse=False)) == []
    with pytest.raises(InvalidIdsError, match=r"ids are torch.int32 on cpu: give torch.int64 on cpu"):
        layer(IDS.int())


def test_found_flags_and_projections(both: EmbeddingStore):
    snapshots = publish(both)
    layer = EntityEmbedding(snapshots, found_feature=True, projection=4)
    assert layer.out_dim == 10
    got = layer(IDS)
    ctr, cvr = expected(snapshots, "zeros")
    assert torch.equal(got[..., 8:], torch.stack([ctr.any(-1), cvr.any(-1)], dim=-1).float())
    assert got[..., 8].tolist() == [[1, 1, 0], [1, 1, 0]]
    assert got[..., 9].tolist() == [[0, 1, 1], [0, 1, 0]]
    for series, vectors, part in zip(layer.series, (ctr, cvr), (got[..., :4], got[..., 4:8]), strict=True):
        torch.testing.assert_close(part, series.projection(vectors))


def test_learned_vectors_start_as_the_mean_and_alone_get_gradients(both: EmbeddingStore):
    snapshots = publish(both)
    layer = EntityEmbedding(snapshots, missing="learned")
    got = layer(IDS)
    torch.testing.assert_close(got, torch.cat(expected(snapshots, "mean"), dim=-1))
    got.sum().backward()
    assert {name: parameter.grad.tolist() for name, parameter in layer.named_parameters()} == {
        "series.0.missing": [2.0] * 3,  # of 1 and 3
        "series.1.missing": [3.0] * 2,  # of -5, 2**62 and 3
    }
    frozen = EntityEmbedding(snapshots, projection=4)
    frozen(IDS).sum().backward()
    assert sorted(name for name, parameter in frozen.named_parameters() if parameter.grad is not None) == [
        f"series.{i}.projection.{kind}" for i in range(2) for kind in ("bias", "weight")
    ]


@pytest.mark.parametrize("missing", ["zeros", "mean", "learned"])
def test_a_dropped_entity_is_one_that_is_missing_everywhere(both: EmbeddingStore, missing: str):
    layer = EntityEmbedding(publish(both), missing=missing, found_feature=True, entity_dropout=0.5)
    ids = torch.tensor([7, 3]).repeat(5000)  # 7 is in both series, 3 in neither
    layer.eval()
    present, absent = layer(ids)[:2]
    layer.train()
    outcomes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        got = layer(ids)
        assert (got[1::2] == absent).all()
        assert (got[::2] == got[0]).all()  # one fate for all its positions
        dropped = bool((got[0] == absent).all())
        assert dropped or bool((got[0] == present).all())
        outcomes.add(dropped)
    assert outcomes == {True, False}


def test_as_many_entities_are_dropped_as_asked_and_others_each_time(both: EmbeddingStore):
    with both.series("user_ctr").write(as_of=1, space="s") as writer:
        writer.append(torch.arange(100_000), torch.ones(100_000, 3))
    layer = EntityEmbedding([both.series("user_ctr").latest()], entity_dropout=0.3)
    torch.manual_seed(0)
    first, second = (layer(torch.arange(100_000))[:, 0] == 0 for _ in range(2))
    assert abs(first.float().mean() - 0.3) < 0.01
    assert abs((first & second).float().mean() - 0.09) < 0.01
    assert not (layer.eval()(torch.arange(100_000)) == 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_output_has_the_dtype_of_the_layer(both: EmbeddingStore, dtype: torch.dtype):
    snapshots = publish(both)
    for missing, projection in (("zeros", None), ("mean", 4), ("learned", 4)):
        layer = EntityEmbedding(snapshots, missing=missing, found_feature=True, projection=projection)
        full = layer(IDS)
        got = layer.to(dtype)(IDS)
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), full, rtol=0.02, atol=0.02)
        assert layer.series[0].storage.dtype == torch.uint8


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_vectors_move_with_the_module(both: EmbeddingStore, device: str):
    layer = EntityEmbedding(publish(both), missing="mean", projection=4)
    want = layer(IDS)
    moved = copy.deepcopy(layer).to("meta")
    assert moved.series[0].storage.is_meta
    layer.to(device)
    torch.testing.assert_close(layer(IDS.to(device)).cpu(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.cpu()(IDS), want)


def test_a_checkpoint_holds_pins_and_opens_them_again(both: EmbeddingStore, tmp_path: Path):
    publish(both)
    ranker = make_ranker(both).eval()
    want = ranker(IDS[0], IDS[1])
    file = io.BytesIO()
    torch.save(ranker.state_dict(), file)
    assert len(file.getvalue()) < 20_000
    dcp.save({"model": get_model_state_dict(ranker)}, checkpoint_id=tmp_path / "dcp")

    publish(both, seed=2)
    other = make_ranker(both).eval()
    assert not torch.equal(other(IDS[0], IDS[1]), want)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(IDS[0], IDS[1]), want)
    assert [snapshot.version for snapshot in (*other.users.snapshots, *other.items.snapshots)] == [1, 1, 1]

    other = make_ranker(both).eval()
    state = {"model": get_model_state_dict(other)}
    dcp.load(state, checkpoint_id=tmp_path / "dcp")
    set_model_state_dict(other, state["model"])
    assert torch.equal(other(IDS[0], IDS[1]), want)
    assert other.state_dict()["users._extra_state"]["pins"][0] == {
        "store": str(tmp_path / "store"),
        "series": "user_ctr",
        "version": 1,
        "as_of": 1,
        "space": "s",
        "dim": 3,
        "dtype": "float32",
        "content": ranker.state_dict()["users._extra_state"]["pins"][0]["content"],
    }


def test_a_store_may_have_moved(both: EmbeddingStore, tmp_path: Path):
    layer = EntityEmbedding(publish(both))
    want, state = layer(IDS), layer.state_dict()
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    moved = EmbeddingStore(tmp_path / "elsewhere")
    other = EntityEmbedding(publish(moved, seed=2))
    other.load_state_dict(state)
    assert torch.equal(other(IDS), want)
    assert [snapshot.version for snapshot in other.snapshots] == [1, 1]


def test_what_is_gone_is_named(both: EmbeddingStore, tmp_path: Path):
    first = publish(both)
    state = EntityEmbedding(first).state_dict()
    second = publish(both, seed=2)
    layer = EntityEmbedding(second)
    want = layer(IDS)
    both.series("user_cvr").expire(keep_last=1, dry_run=False)
    with pytest.raises(VersionExpiredError, match=r"the checkpoint's user_cvr version 1 in .*store.*expired"):
        layer.load_state_dict(state)
    both.series("user_ctr").expire(keep_last=1, dry_run=False)
    with pytest.raises(NotFoundError, match=r"user_ctr version 1 in .*; the checkpoint's user_cvr version 1 in"):
        layer.load_state_dict(state)
    assert torch.equal(layer(IDS), want)  # what failed to load has changed nothing
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(SeriesNotFoundError, match="user_ctr version 1"):
        layer.load_state_dict(state)
    again = EntityEmbedding(publish(make_store(tmp_path / "store"), seed=3))
    with pytest.raises(PinMismatchError, match=r"user_ctr version 1 in .* another snapshot: as_of is 3, was 1, conte"):
        again.load_state_dict(state)
    ahead = copy.deepcopy(again.state_dict())
    ahead["_extra_state"]["pins"][1]["version"] = 9
    with pytest.raises(VersionNotFoundError, match="user_cvr version 9"):
        again.load_state_dict(ahead)


def test_another_layer_than_the_checkpoints_is_refused(both: EmbeddingStore):
    ctr, cvr = publish(both)
    state = EntityEmbedding([ctr, cvr]).state_dict()
    with pytest.raises(PinMismatchError, match="is of user_ctr, user_cvr, this layer of user_cvr, user_ctr: build"):
        EntityEmbedding([cvr, ctr]).load_state_dict(state)
    wider = both.series("user_ctr").evolve(dim=4)
    with wider.write(as_of=2, space="s") as writer:
        writer.append(torch.tensor([7]), torch.ones(1, 4))
    with pytest.raises(SchemaChangedError, match=r"user_ctr version 1 has dim 3; this layer .* version 2, dim 4"):
        EntityEmbedding([wider.latest(), cvr]).load_state_dict(state)
    unreadable = copy.deepcopy(state)
    unreadable["_extra_state"]["pins"][0]["shard"] = 1
    with pytest.raises(PinMismatchError, match="is not a pin"):
        EntityEmbedding([ctr, cvr]).load_state_dict(unreadable)


def test_a_copy_shares_the_vectors_and_a_pickle_opens_them_again(both: EmbeddingStore, tmp_path: Path):
    layer = EntityEmbedding(publish(both), missing="learned", projection=4)
    want = layer(IDS)
    pickled = pickle.dumps(layer)
    copied = copy.deepcopy(layer)
    assert copied.series[0].storage.data_ptr() == layer.series[0].storage.data_ptr()
    with torch.no_grad():
        layer.series[0].missing.zero_()
    assert torch.equal(copied(IDS), want)
    opened = pickle.loads(pickled)
    assert torch.equal(opened(IDS), want)
    assert opened.snapshots[1].version == 1
    shutil.rmtree(tmp_path / "store")
    assert torch.equal(copy.deepcopy(copied)(IDS), want)
    with pytest.raises(SeriesNotFoundError, match="user_ctr version 1"):
        pickle.loads(pickled)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing": "median"}, "missing is 'median'; use one of zeros, mean, learned"),
        ({"projection": 0}, "projection is 0"),
        ({"entity_dropout": 1.0}, r"entity_dropout is 1\.0"),
        ({"entity_dropout": -0.1}, "entity_dropout is"),
    ],
)
def test_wrong_arguments_are_named(both: EmbeddingStore, options: dict, message: str):
    snapshots = publish(both)
    with pytest.raises(InvalidArgumentError, match=message):
        EntityEmbedding(snapshots, **options)
    with pytest.raises(InvalidArgumentError, match="snapshots is empty"):
        EntityEmbedding([])


def test_print_shows_the_versions(both: EmbeddingStore):
    text = repr(EntityEmbedding(publish(both), missing="mean"))
    assert "user_cvr version=1, dim=2, dtype=float32, missing=mean" in text
    assert "out_dim=5" in text


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
    layer = EntityEmbedding(snapshots, missing=missing, gpu_bytes={"user_ctr": 512 + 12}, hot_ids=hot_ids)
    assert layer.tiers == {}  # on the CPU the files are mapped
    for series in layer._series():
        series._copy(torch.device("cpu"))  # as `to` does for a GPU
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
    layer = EntityEmbedding(snapshots, gpu_bytes={"user_ctr": 512 + 12}, hot_ids={"user_ctr": torch.tensor([7])})
    layer.to(device)
    assert torch.equal(layer(IDS.to(device)).cpu(), torch.cat(expected(snapshots, "zeros"), -1))
    assert layer.tiers["user_ctr"].hits() == Hits(2, 2, 2, 2)
    assert layer.to("cpu").tiers == {}
