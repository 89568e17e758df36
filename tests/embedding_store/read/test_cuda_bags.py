"""Pooled lookups, lookups in many tables, and locations on a GPU; test_emulator_bags.py checks the kernels without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embedding_store.dtypes import DTYPES
from embedding_store.native import ops, reference
from tests.embedding_store.small_table import SmallTable, small_table

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

IDS = [-(2**63), -1, 0, 1, 2**31, 2**63 - 1, *(1000 + 37 * i for i in range(3000))]
MISSING = [5, -7, 2**40, -(2**62)]


def questions(count: int, seed: int = 0) -> Tensor:
    """Ids that are there, some of them twice, and some that are not, on the GPU."""
    choice = torch.randint(len(IDS) + len(MISSING), (count,), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(IDS + MISSING)[choice].cuda()


def offsets_of(lengths: list[int] | Tensor) -> Tensor:
    return torch.cat((torch.zeros(1, dtype=torch.int64), torch.as_tensor(lengths).cumsum(0))).cuda()


def pooled(
    table: SmallTable, ids: Tensor, offsets: Tensor, weights: Tensor | None = None, mode: str = "sum"
) -> tuple[Tensor, Tensor]:
    return ops.lookup_pooled(ids, offsets, weights, table.storage, table.layout, table.dim, table.dtype.name, mode)


LENGTHS = {
    "ones": [1] * 5000,
    "twenty": [20] * 500,
    "hundred": [100] * 100,
    "huge": [300_000],
    "huge among ones": [1] * 20_000 + [200_000] + [1] * 20_000,
    "several long": [5000, 0, 0, 7000, 1, 9000, 65, 64, 63],
    "mostly empty": [0] * 50_000 + [3] + [0] * 50_000,
}


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("name", ["float32", "float16", "int8", "int4"])
def test_bags_of_every_length(name: str, kind: str):
    offsets = offsets_of(LENGTHS[kind])
    ids = questions(int(offsets[-1]), 3)
    weights = torch.randn(len(ids), generator=torch.Generator().manual_seed(2)).cuda()
    for dim in (4, 32, 100, 128):
        table = small_table(IDS, dim, name)
        on_gpu = table.to("cuda")
        for given in (None, weights):
            got, found = pooled(on_gpu, ids, offsets, given, "mean")
            cpu = (ids.cpu(), offsets.cpu(), None if given is None else given.cpu())
            slow = len(ids) + len(offsets) > 50_000
            expected, expected_found = pooled(table, *cpu, "mean") if slow else table.pooled_answer(*cpu, "mean")
            torch.testing.assert_close(got.cpu().double(), expected.double(), rtol=1e-4, atol=1e-4)
            assert torch.equal(found.cpu(), expected_found)
            for _ in range(3):
                assert torch.equal(pooled(on_gpu, ids, offsets, given, "mean")[0], got)  # the same bits


def test_bags_of_one_are_lookups():
    for name in DTYPES:
        table, ids = small_table(IDS, 64, name).to("cuda"), questions(4000)
        got, found = pooled(table, ids, torch.arange(4001, device="cuda"))
        expected, expected_found = ops.lookup(ids, table.storage, table.layout, 64, name)
        if table.dtype.quantised:  # scale * value + offset is rounded once, in a lookup twice
            torch.testing.assert_close(got, expected, rtol=2 * torch.finfo(got.dtype).eps, atol=1e-6)
        else:
            assert torch.equal(got, expected)
        assert torch.equal(found, expected_found.to(torch.int64))


@pytest.mark.parametrize("offsets", [[0, 2, 1, 3], [1, 2, 3, 3], [0, 1, 2, 2], [0, 2**62, 1, 3], [-5, 2, 3, 3]])
def test_offsets_that_cannot_be_are_answered_with_nothing_but_nan(offsets: list[int]):
    table = small_table(IDS, 8, "int8", segment_rows=[1000, len(IDS) - 1000], tiered=True).to("cuda")
    whole = small_table(IDS, 8, "int8").to("cuda")
    ids, wrong = torch.tensor(IDS[:3], device="cuda"), torch.tensor(offsets, device="cuda")
    weights = torch.ones(3, device="cuda", requires_grad=True)
    answers = [
        ops.lookup_pooled(ids, wrong, weights, whole.storage, whole.layout, 8, "int8", "sum"),
        ops.lookup_pooled_tiered(ids, wrong, weights, table.storage, table.cold, table.layout, 8, "int8", "sum")[:2],
    ]
    for got, found in answers:
        assert got.isnan().all()
        assert found.tolist() == [-1] * 3
        weights.grad = None
        got.sum().backward()
        assert weights.grad.isnan().all()
    with pytest.raises(ValueError, match="offsets do not rise from 0 to the number of ids, 3"):
        ops.lookup_pooled(ids, wrong[:0].new_zeros(1), None, whole.storage, whole.layout, 8, "int8", "sum")
    good = ops.lookup_pooled(ids, torch.tensor([0, 3], device="cuda"), None, whole.storage, whole.layout, 8, "int8")
    assert good[1].tolist() == [3]  # nothing is broken


@pytest.mark.parametrize("name", ["float32", "int8", "int4"])
def test_tiers_are_pooled_at_once(name: str):
    table = small_table(IDS, 32, name, segment_rows=[500, len(IDS) - 500], tiered=True)
    on_gpu, ids = table.to("cuda"), questions(20_000)
    offsets = offsets_of([0, 1, 6000, *[20] * 600, 1999])
    weights = torch.randn(20_000, generator=torch.Generator().manual_seed(2))
    grads = []
    for device, one in (("cuda", on_gpu), ("cpu", table)):
        given = weights.to(device).requires_grad_()
        arguments = (ids.to(device), offsets.to(device), given, one.storage, one.cold, one.layout, 32, name, "mean")
        got, found, hits = ops.lookup_pooled_tiered(*arguments)
        expected, expected_found = table.pooled_answer(ids.cpu(), offsets.cpu(), weights, "mean")
        torch.testing.assert_close(got.detach().cpu().double(), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.cpu(), expected_found)
        hot, all = int(torch.isin(ids, table.ids[:500].cuda()).sum()), int(expected_found.sum())
        distinct = len(ids[torch.isin(ids, table.ids[500:].cuda())].unique())
        assert hits.tolist() == [hot, all - hot, 20_000 - all, distinct if device == "cuda" else all - hot]
        got.square().sum().backward()
        grads.append(given.grad.cpu())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 7, 3000])
def test_each_id_in_a_table_of_its_own(count: int):
    tables = [
        small_table(IDS[: 10 + n % 40], 12, "int8", gone=MISSING[:1] if n % 2 else None, seed=n % 8)
        for n in range(count)
    ]
    storages, layouts = [table.storage.cuda() for table in tables], [table.layout for table in tables]
    ids = questions(5000, 4)
    choice = torch.randint(-1, count, (5000,), generator=torch.Generator().manual_seed(1)).cuda()
    vectors, found = ops.lookup_versions(
        ids.cpu(), choice.cpu(), [table.storage for table in tables], layouts, 12, "int8"
    )
    for given in (layouts, [layout.cuda() for layout in layouts]):
        for shape in ((5000,), (50, 100)):
            got = ops.lookup_versions(ids.view(shape), choice.view(shape), storages, given, 12, "int8")
            assert torch.equal(got[0].cpu(), vectors.view(*shape, 12))
            assert torch.equal(got[1].cpu(), found.view(shape))


def test_no_table_has_another_number_and_arguments_are_checked():
    table, ids = small_table(IDS, 8, "float32").to("cuda"), torch.tensor([0, 0, 0], device="cuda")
    arguments = ([table.storage], [table.layout], 8, "float32")
    vectors, found = ops.lookup_versions(ids, torch.tensor([0, 1, -(2**63)], device="cuda"), *arguments)
    assert found.tolist() == [True, False, False]
    assert not vectors[1:].any()
    with pytest.raises(ValueError, match="choice is not int64, one for each id"):
        ops.lookup_versions(ids, ids[:2], *arguments)
    with pytest.raises(ValueError, match="choice is not on the device of the ids"):
        ops.lookup_versions(ids, ids.cpu(), *arguments)
    with pytest.raises(ValueError, match="storages and layouts are not one or more tensors each"):
        ops.lookup_versions(ids, ids, [], [], 8, "float32")


def test_locations():
    for options in ({}, {"gone": MISSING[:2]}, {"segment_rows": [1000, len(IDS) - 1000]}):
        table = small_table(IDS, 4, "float32", **options)
        for shape in ((), (0,), (3, 7), (100_000,)):
            ids = questions(max(torch.Size(shape).numel(), 1))[: torch.Size(shape).numel()].view(shape)
            expected = reference.locate(ids.cpu(), table.storage, table.layout)
            for layout in (table.layout, table.layout.cuda()):
                assert torch.equal(ops.locate(ids, table.storage.cuda(), layout).cpu(), expected)


def test_pooling_is_captured_in_a_graph_and_replayed():
    table, ids, offsets = small_table(IDS, 64, "int8").to("cuda"), questions(6000), offsets_of([1000, 0, 4000, 1000])
    pooled(table, ids, offsets)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = pooled(table, ids, offsets)
    for seed, lengths in ((5, [6000, 0, 0, 0]), (6, [1, 1, 1, 5997])):
        ids.copy_(questions(6000, seed))
        offsets.copy_(offsets_of(lengths))
        graph.replay()
        torch.cuda.synchronize()
        expected = pooled(table, ids, offsets)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


def test_opcheck():
    whole = small_table(IDS, 8, "int8").to("cuda")
    ids, offsets = questions(50), torch.tensor([0, 20, 50], device="cuda")
    weights = torch.randn(50, device="cuda", requires_grad=True)
    registered = torch.ops.embedding_store
    # Cold rows that opcheck can clone: all rows are hot.
    none = torch.empty(0, dtype=torch.uint8).pin_memory()
    arguments = (ids, offsets, weights, whole.storage, none, whole.layout, 8, "int8", "mean", torch.float32)
    torch.library.opcheck(registered.lookup_pooled_tiered, arguments)
    choice = torch.zeros(50, dtype=torch.int64, device="cuda")
    torch.library.opcheck(
        registered.lookup_versions, (ids, choice, [whole.storage], [whole.layout], 8, "int8", torch.float16)
    )
    torch.library.opcheck(registered.locate, (ids, whole.storage, whole.layout))
