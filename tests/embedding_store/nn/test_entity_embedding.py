"""EntityEmbedding: what it computes."""

from __future__ import annotations

import copy

import pytest
import torch

from embedding_store import EmbeddingStore, EntityEmbedding, InvalidArgumentError, InvalidIdsError
from tests.embedding_store.nn.layers import CUDA, IDS, expected, publish


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
