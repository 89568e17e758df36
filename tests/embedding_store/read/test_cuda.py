"""The ops on a GPU, beside the CPU's answers. test_emulator.py checks the same kernels' logic without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embedding_store import EmbeddingStore
from embedding_store.dtypes import DTYPES
from embedding_store.native import ops
from embedding_store.read import upload as device_module
from embedding_store.read.tiered import TieredTable
from tests.embedding_store.helpers import publish
from tests.embedding_store.small_table import SmallTable, small_table

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

OUTS = (torch.float32, torch.float16, torch.bfloat16)
IDS = [-(2**63), -1, 0, 1, 2**31, 2**63 - 1, *(1000 + 37 * i for i in range(3000))]
MISSING = [5, -7, 2**40, -(2**62)]


def questions(count: int, seed: int = 0) -> Tensor:
    """Ids that are there, some of them twice, and some that are not, on the GPU."""
    choice = torch.randint(len(IDS) + len(MISSING), (count,), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(IDS + MISSING)[choice].cuda()


def lookup(table: SmallTable, ids: Tensor, out: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return ops.lookup(ids, table.storage, table.layout, table.dim, table.dtype.name, out)


def assert_answers(table: SmallTable, ids: Tensor, out: torch.dtype, got: tuple[Tensor, Tensor]) -> None:
    expected, expected_found = table.answer(ids.cpu(), out)
    assert got[0].device == got[1].device == ids.device
    assert torch.equal(got[0].cpu(), expected)
    assert torch.equal(got[1].cpu(), expected_found)


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("name", DTYPES)
def test_the_same_bits_as_on_the_cpu(name: str, out: torch.dtype):
    for dim in (1, 2, 3, 4, 6, 8, 33, 64, 100, 128, 264, 1024):
        table = small_table(IDS, dim, name, in_row=dim % 2 == 0)
        ids = questions(5000, dim)
        got = lookup(table.to("cuda"), ids, out)
        assert_answers(table, ids, out, got)
        on_cpu = lookup(table, ids.cpu(), out)
        assert torch.equal(got[0].cpu(), on_cpu[0]), f"dim {dim}"


@pytest.mark.parametrize("gone", [None, MISSING[:2]])
@pytest.mark.parametrize("count", [1, 3, 4, 7, 31, 32, 33, 1000, 12_000, 20_000, 40_000, 300_000])
def test_any_number_of_ids_and_a_layout_here_or_there(count: int, gone: list[int] | None):
    table, ids = small_table(IDS, 8, "int8", gone=gone), questions(count)
    on_gpu = table.to("cuda")
    for layout in (table.layout, on_gpu.layout):
        got = ops.lookup(ids, on_gpu.storage, layout, 8, "int8")
        assert_answers(table, ids, torch.float32, got)


@pytest.mark.parametrize("name", DTYPES)
def test_hardly_any_id_is_there(name: str):
    table, ids = small_table(IDS, 96, name), torch.arange(-50_000, 50_000, device="cuda")
    assert_answers(table, ids, torch.float32, lookup(table.to("cuda"), ids))


def test_shapes_strides_and_nothing_at_all():
    table = small_table(IDS, 5, "int8")
    on_gpu = table.to("cuda")
    for shape in [(), (0,), (2, 0, 3), (1, 1, 1), (3, 7)]:
        ids = questions(max(torch.Size(shape).numel(), 1))[: torch.Size(shape).numel()].view(shape)
        vectors, found = lookup(on_gpu, ids)
        assert (vectors.shape, found.shape) == ((*shape, 5), shape)
        assert_answers(table, ids, torch.float32, (vectors, found))
    strided = questions(200).view(100, 2)[:, 1]
    assert_answers(table, strided, torch.float32, lookup(on_gpu, strided))
    nothing = small_table([], 5, "int8")
    assert_answers(nothing, questions(100), torch.float32, lookup(nothing.to("cuda"), questions(100)))


def test_long_searches_and_several_segments():
    stored = list(range(-2000, 2000))
    table = small_table(stored, 4, "float16", load=1.0, seed=3, segment_rows=[1000, 0, 3000])
    ids = torch.arange(-2500, 2500, device="cuda")
    assert_answers(table, ids, torch.float16, lookup(table.to("cuda"), ids, torch.float16))


def test_a_location_outside_its_segment_is_not_read():
    table = small_table(list(range(100)), 8, "int8").to("cuda")
    table.layout[8 + 3] = 30  # rows
    vectors, found = lookup(table, torch.arange(100, device="cuda"))
    assert found.tolist() == [True] * 30 + [False] * 70
    assert not vectors[30:].any()


def test_more_than_two_to_the_31_elements_and_bytes():
    table = small_table(list(range(64)), 128, "float16")
    spread = 2**18  # row r lies at row number r * spread: 2^24 rows of 128 values
    storage = torch.zeros(64 * spread * 256 + len(table.storage), dtype=torch.uint8, device="cuda")
    column, end = int(table.layout[8]), int(table.layout[8]) + 64 * 256
    storage[: 64 * spread * 256].view(64, -1)[:, :256] = table.storage[column:end].view(64, 256).cuda()
    index = table.storage[: int(table.layout[2]) * 64].clone().view(torch.int64).view(-1, 2)
    index[:, 1] = torch.where(index[:, 1] == -1, -1, index[:, 1] * spread)
    start = 64 * spread * 256
    storage[start : start + index.numel() * 8] = index.view(torch.uint8).flatten().cuda()
    layout = table.layout.clone()
    layout[0], layout[8], layout[11] = start, 0, 64 * spread
    ids = torch.arange(2**24 + 64, device="cuda") % 64  # 2^31 values of output, and some more
    vectors, found = ops.lookup(ids, storage, layout.cuda(), 128, "float16", torch.float16)
    assert vectors.numel() > 2**31
    assert found.all()
    expected = table.vectors.to(torch.float16).cuda()
    for part in (slice(0, 64), slice(2**23, 2**23 + 64), slice(2**24, 2**24 + 64)):
        assert torch.equal(vectors[part], expected[ids[part]])


def test_work_is_ordered_by_the_current_stream():
    table = small_table(IDS, 64, "float32")
    on_gpu, real = table.to("cuda"), questions(10_000)
    ids = torch.full_like(real, 5)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # a lookup on another stream would be long done
        ids.copy_(real)
        got = lookup(on_gpu, ids)
    stream.synchronize()
    assert_answers(table, real, torch.float32, got)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_table_on_another_than_the_current_device():
    table, ids = small_table(IDS, 16, "int8"), questions(100).to("cuda:1")
    with torch.cuda.device(0):
        got = lookup(table.to("cuda:1"), ids)
        assert torch.cuda.current_device() == 0
    assert_answers(table, ids, torch.float32, got)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("name", DTYPES)
def test_bags_are_pooled(name: str, mode: str):
    ids = questions(4000)
    lengths = torch.randint(0, 90, (200,), generator=torch.Generator().manual_seed(1))
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).clamp(max=4000).cuda()
    offsets[-1] = 4000
    weights = torch.randn(4000, generator=torch.Generator().manual_seed(2)).cuda()
    for dim in (1, 3, 6, 20, 64, 128, 260):
        table = small_table(IDS, dim, name)
        on_gpu = table.to("cuda")
        for given in (None, weights):
            arguments = (on_gpu.storage, on_gpu.layout, dim, name, mode)
            pooled, found = ops.lookup_pooled(ids, offsets, given, *arguments)
            cpu_weights = None if given is None else given.cpu()
            expected, expected_found = table.pooled_answer(ids.cpu(), offsets.cpu(), cpu_weights, mode)
            torch.testing.assert_close(pooled.cpu().to(torch.float64), expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(found.cpu(), expected_found)
            for out in (torch.float16, torch.bfloat16):
                assert torch.equal(ops.lookup_pooled(ids, offsets, given, *arguments, out)[0], pooled.to(out))


def test_no_bags_and_empty_bags():
    table = small_table(IDS, 4, "float32").to("cuda")
    arguments = (None, table.storage, table.layout, 4, "float32", "mean")
    none = torch.empty(0, dtype=torch.int64, device="cuda")
    pooled, found = ops.lookup_pooled(none, torch.zeros(1, dtype=torch.int64, device="cuda"), *arguments)
    assert (pooled.shape, found.shape) == ((0, 4), (0,))
    pooled, found = ops.lookup_pooled(none, torch.zeros(4, dtype=torch.int64, device="cuda"), *arguments)
    assert torch.equal(pooled, torch.zeros(3, 4, device="cuda"))


def test_the_gradient_of_weights():
    table = small_table(IDS, 12, "float16")
    ids, offsets = questions(60), torch.tensor([0, 20, 20, 60])
    grads = []
    for device in ("cuda", "cpu"):
        there = table.to(device)
        weights = torch.randn(60, generator=torch.Generator().manual_seed(3)).to(device).requires_grad_()
        pooled, _ = ops.lookup_pooled(
            ids.to(device), offsets.to(device), weights, there.storage, there.layout, 12, "float16", "mean"
        )
        pooled.square().sum().backward()
        grads.append(weights.grad.cpu())
    torch.testing.assert_close(grads[0], grads[1])


def test_arguments_that_do_not_fit_are_refused_with_a_remedy():
    table = small_table(IDS, 4, "float32", segment_rows=[100, len(IDS) - 100], tiered=True)
    on_gpu, ids = table.to("cuda"), questions(10)
    counters = torch.zeros(4, dtype=torch.int64, device="cuda")
    with pytest.raises(ValueError, match="cold is in memory that the device cannot read: give a pinned tensor"):
        ops.lookup_tiered(ids, on_gpu.storage, table.cold, on_gpu.layout, 4, "float32", torch.float32, counters)
    with pytest.raises(ValueError, match="counters has 2 values, not 4"):
        ops.lookup_tiered(ids, on_gpu.storage, on_gpu.cold, on_gpu.layout, 4, "float32", torch.float32, counters[:2])
    many = small_table(IDS, 4, "float32", segment_rows=[100, 100, 100, len(IDS) - 300])
    for layout in (many.layout, many.layout.cuda()):
        with pytest.raises(ValueError, match=r"layout has 24 values: .* load it with Snapshot\.load\(device\)"):
            ops.lookup(ids, many.storage.cuda(), layout, 4, "float32")
    with pytest.raises(ValueError, match="layout has 12 values, not 8 and 4 for each of the 2 segments and overlays"):
        ops.lookup(ids, on_gpu.storage, table.layout[:12], 4, "float32")
    wrong = [
        (0, 2**40, r"layout\[0\] is 1099511627776: \d+ buckets do not lie there in the \d+ bytes of storage"),
        (1, 0, r"layout\[1\] is 0 home buckets; use 1 or more"),
        (4, -1, r"layout\[4\] is -1 segments; use 0 \.\. 3"),
        (7, 1, r"\d+ buckets do not lie there in the \d+ bytes of cold"),
        (8, 8, r"the values of 100 rows of segment 0 .* at a multiple of 16; give the tensors and the layout"),
        (15, 2**62, r"rows of segment 1 do not lie there in the \d+ bytes of cold"),
    ]
    for at, value, message in wrong:
        layout = table.layout.clone()
        layout[at] = value
        with pytest.raises(ValueError, match=message):
            ops.lookup_tiered(ids, on_gpu.storage, on_gpu.cold, layout, 4, "float32", torch.float32, counters)
    wide = small_table(IDS, 64, "float32", segment_rows=[100, len(IDS) - 100], tiered=True)  # too wide for the index
    with pytest.raises(ValueError, match=r"rows of segment 1 do not lie there in the \d+ bytes of storage"):
        ops.lookup(ids, wide.storage.cuda(), wide.layout, 64, "float32")
    with pytest.raises(ValueError, match="storage does not begin at a multiple of 16 bytes"):
        ops.lookup(ids, on_gpu.storage[1:], on_gpu.layout, 4, "float32")
    with pytest.raises(ValueError, match="dtype is 'int3'; use one of"):
        ops.lookup(ids, on_gpu.storage, on_gpu.layout, 4, "int3")


@pytest.mark.parametrize("name", DTYPES)
def test_a_loaded_snapshot(store: EmbeddingStore, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device_module, "_STAGING_BYTES", 4096)  # many pieces, so that buffers are used again
    series = store.create("user", dim=16, dtype=name)
    vectors = torch.randn(len(IDS), 16, generator=torch.Generator().manual_seed(1))
    publish(series, 1, IDS, vectors, rows_per_batch=700)
    with series.write(as_of=2, space="ctr-1", base=1) as writer:
        writer.append(torch.tensor(IDS[:50]), vectors[50:100])
        writer.delete(torch.tensor(IDS[60:70]))
    snapshot = series.latest()
    ids, whole = questions(5000), snapshot.load()
    index_bytes = int(whole.layout[2]) * 64
    hot = torch.tensor(IDS[::5])
    tables = [snapshot.load("cuda"), snapshot.load("cuda", gpu_bytes=index_bytes + 20_000, hot_ids=hot)]
    for table in tables:
        for out in OUTS:
            got, expected = table.lookup(ids, out), whole.lookup(ids.cpu(), out)
            assert torch.equal(got[0].cpu(), expected[0])
            assert torch.equal(got[1].cpu(), expected[1])
        assert table.ids().tolist() == whole.ids().tolist()
    assert isinstance(tables[1], TieredTable)
    assert tables[1].cold.is_pinned()
    assert 0 < tables[1].hits().rate < 1
    offsets = torch.tensor([0, 100, 100, 5000], device="cuda")
    pooled, found = tables[1].lookup_pooled(ids, offsets, None, "mean")
    expected, expected_found = tables[0].lookup_pooled(ids, offsets, None, "mean")
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found, expected_found)


def test_opcheck():
    table, ids = small_table(IDS, 8, "int8", segment_rows=[1000, len(IDS) - 1000], tiered=True), questions(50)
    whole = small_table(IDS, 8, "int8").to("cuda")
    on_gpu = table.to("cuda")
    registered = torch.ops.embedding_store
    torch.library.opcheck(registered.lookup, (ids, whole.storage, whole.layout, 8, "int8", torch.float16))
    offsets = torch.tensor([0, 20, 50], device="cuda")
    weights = torch.randn(50, device="cuda", requires_grad=True)
    arguments = (ids, offsets, weights, whole.storage, whole.layout, 8, "int8", "mean", torch.float32)
    torch.library.opcheck(registered.lookup_pooled, arguments)
    counters = torch.zeros(4, dtype=torch.int64, device="cuda")
    # opcheck clones what it is given, and a clone of a pinned tensor is not pinned: so the cold rows are on the GPU.
    arguments = (ids, on_gpu.storage, table.cold.cuda(), on_gpu.layout, 8, "int8", torch.float32, counters)
    torch.library.opcheck(registered.lookup_tiered, arguments)
    state, rows = torch.tensor([1, 0, 3], device="cuda"), torch.arange(8, device="cuda").view(2, 4)
    torch.library.opcheck(registered.enter, (state, rows))
    torch.library.opcheck(registered.leave, (state, torch.tensor([1, 2, 0], device="cuda")))


def test_compiled_without_a_graph_break():
    table = small_table(IDS, 8, "int8")
    on_gpu = table.to("cuda")

    @torch.compile(fullgraph=True)
    def model(ids: Tensor) -> Tensor:
        vectors, found = lookup(on_gpu, ids)
        return torch.where(found[:, None], vectors, 1.0).sum(1)

    ids = questions(100)
    vectors, found = table.answer(ids.cpu())
    expected = torch.where(found[:, None], vectors, 1.0).sum(1)
    torch.testing.assert_close(model(ids).cpu(), expected, rtol=1e-4, atol=1e-5)


def test_captured_in_a_graph_and_replayed():
    table = small_table(IDS, 64, "float16", segment_rows=[1000, len(IDS) - 1000], tiered=True)
    on_gpu, ids = table.to("cuda"), questions(1000)
    counters = torch.zeros(4, dtype=torch.int64, device="cuda")
    arguments = (on_gpu.storage, on_gpu.cold, on_gpu.layout, 64, "float16", torch.float32, counters)
    ops.lookup_tiered(ids, *arguments)  # loads the kernel: not allowed during capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.lookup_tiered(ids, *arguments)
    for seed in (5, 6):
        ids.copy_(questions(1000, seed))
        graph.replay()
        torch.cuda.synchronize()
        assert_answers(table, ids, torch.float32, got)
    assert int(counters[:3].sum()) == 3000
