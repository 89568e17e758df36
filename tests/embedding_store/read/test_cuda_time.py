"""Lookups as of a time on a GPU, beside the CPU's answers. ../native/test_emulator_history.py needs no GPU."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from embedding_store import DeviceMemoryError, EmbeddingStore, InvalidIdsError, PointInTime, Series
from embedding_store.dtypes import DTYPES
from embedding_store.native import gpu, ops
from tests.embedding_store.native.test_lookup_history import inputs_of, tables_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

OUTS = (torch.float32, torch.float16, torch.bfloat16)
LONG = 2_000_000_000
"""Cycles of a kernel that blocks its stream: a second or so."""


def test_the_shapes_of_what_a_gpu_would_give():
    """What torch.compile plans with; no GPU is asked."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        ids, versions = (torch.empty(shape, dtype=torch.int64, device="cuda") for shape in ((2, 3), (5,)))
        storage = torch.empty(100, dtype=torch.uint8, device="cuda")
        layout = torch.empty(12, dtype=torch.int64)
        tables = ([storage], [layout])
        vectors, found = torch.ops.embedding_store.lookup_versions(ids, ids, *tables, 7, "int8", torch.float16)
        assert (vectors.shape, vectors.dtype, found.shape, found.dtype) == (
            (2, 3, 7),
            torch.float16,
            (2, 3),
            torch.bool,
        )
        arguments = (ids, ids, ids, versions, versions, *tables, 4, 7, "int8", torch.float16)
        history = torch.ops.embedding_store.lookup_history(*arguments)
        assert [tuple(x.shape) for x in history] == [(2, 3, 4, 7), (2, 3, 4), (2, 3, 4)]
        assert [x.dtype for x in history] == [torch.float16, torch.bool, torch.int64]
        assert {x.device.type for x in (vectors, found, *history)} == {"cuda"}


def on_gpu(inputs: dict[str, object]) -> dict[str, object]:
    """Arguments of lookup_history there; layouts stay here, or go too."""
    there = {name: x.cuda() for name, x in inputs.items() if isinstance(x, Tensor)}
    return inputs | there | {"storages": [x.cuda() for x in inputs["storages"]]}  # type: ignore[attr-defined]


@needs_gpu
@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("name", DTYPES)
def test_a_history_has_the_same_bits_as_on_the_cpu(name: str, out: torch.dtype):
    for dim, k, count in ((1, 1, 5000), (3, 2, 40_000), (8, 8, 5000), (33, 3, 1), (64, 40, 300), (128, 7, 0)):
        tables = tables_of(name, dim, [300, 200, 250])
        inputs = inputs_of(tables, [0, 1, -1, 2, 1, 0], (count,), dim)
        expected = ops.lookup_history(**inputs, k=k, out=out)
        there = on_gpu(inputs)
        for layouts in (inputs["layouts"], [x.cuda() for x in inputs["layouts"]]):  # type: ignore[attr-defined]
            got = ops.lookup_history(**there | {"layouts": layouts}, k=k, out=out)
            for one, other in zip(got, expected, strict=True):
                assert one.is_cuda
                assert torch.equal(one.cpu(), other), (dim, k, count)


@needs_gpu
@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 5)])
def test_shapes_strides_and_the_largest_k(shape: tuple[int, ...]):
    inputs = inputs_of(tables_of("int8", 5, [40, 30]), [0, 1, 0], shape, 3)
    expected = ops.lookup_history(**inputs, k=4096)
    there = on_gpu(inputs)
    strided = {name: torch.stack((there[name],) * 2, -1)[..., 1] for name in ("ids", "timestamps", "newest")}
    for arguments in (there, there | strided):
        for one, other in zip(ops.lookup_history(**arguments, k=4096), expected, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            assert torch.equal(one.cpu(), other)


@needs_gpu
def test_history_refuses_and_takes_wrong_numbers_for_none():
    inputs = on_gpu(inputs_of(tables_of("float32", 4, [3, 5]), [0, 1], (3,), 0))
    for change, message in (
        ({"k": 4097}, r"k is 4097; use 1 \.\. 4096"),
        ({"timestamps": torch.zeros(3, dtype=torch.int64)}, "timestamps is not on the device of the ids"),
        ({"numbers": torch.zeros(1, dtype=torch.int64, device="cuda")}, "numbers is not int64, one for each version"),
        ({"newest": torch.zeros(3, device="cuda")}, "newest is not int64, one for each id"),
        ({"layouts": []}, "storages and layouts are not one or more"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.lookup_history(**inputs | {"k": 2} | change)
    wrong = torch.tensor([2, -(2**63), 2**63 - 1], device="cuda")
    assert not ops.lookup_history(**inputs | {"newest": wrong}, k=2)[1].any()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(ValueError, match="outside of a graph's capture"), torch.cuda.graph(graph):
        ops.lookup_history(**inputs, k=2)
    torch.library.opcheck(
        torch.ops.embedding_store.lookup_history.default,
        (*(inputs[x] for x in ("ids", "timestamps", "newest", "as_of", "numbers", "storages", "layouts")),
         4, 4, "float32", torch.float16),
    )  # fmt: skip


@pytest.fixture
def filled(store: EmbeddingStore) -> Series:
    """Six versions of 2,000 ids of a thousand floats, 8 MB each: the last two int8."""
    series = store.create("user_ctr", dim=1000)
    for version in range(1, 7):
        series = series.evolve(dtype="int8") if version == 5 else series
        with series.write(as_of=10 * version, space="ctr-1") as writer:
            values = torch.randn(2000, 1000, generator=torch.Generator().manual_seed(version))
            writer.append(torch.arange(0, 2000 * version, version), values)
    return series


def asked(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(-10, 9000, (count,), generator=generator), torch.randint(0, 80, (count,), generator=generator)


@needs_gpu
@pytest.mark.parametrize("room", [None, 1, 2, 7])
def test_as_of_times_on_the_gpu(filled: Series, room: int | None):
    mapped, largest = filled.point_in_time(), max(x.device_bytes for x in filled.history())
    then = filled.point_in_time(device="cuda", gpu_bytes=None if room is None else room * largest)
    for count in (3000, 0, 1):
        ids, times = asked(count)
        expected, history = mapped.lookup(ids, times, 5), mapped.lookup_history(ids, times, 3, 5, torch.float16)
        for there in ((ids, times), (ids.cuda(), times), (ids, times.cuda()), (ids.cuda(), times.cuda())):
            got = (*then.lookup(*there, 5), *then.lookup_history(*there, 3, 5, torch.float16))
            for one, other in zip(got, (*expected, *history), strict=True):
                assert one.is_cuda
                assert torch.equal(one.cpu(), other)
        assert then.visible(times.cuda()).is_cuda
        assert torch.equal(then.visible(times.cuda()).cpu(), mapped.visible(times))


@needs_gpu
def test_times_on_the_cpu_let_nothing_wait_and_others_once(filled: Series):
    then = filled.point_in_time(device="cuda")
    ids, times = asked(3000)
    there = ids.cuda(), times.cuda()
    for one in ((ids, times), there):
        then.lookup(*one)
        then.lookup_history(*one, 4)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        then.lookup(ids, times)
        then.lookup_history(there[0], times, 4)
        torch.cuda.set_sync_debug_mode("warn")
        for look_up in (lambda: then.lookup(*there), lambda: then.lookup_history(*there, 4)):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                look_up()
            assert len([x for x in seen if "synchroniz" in str(x.message)]) == 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_a_version_that_goes_while_another_stream_reads_it(filled: Series):
    largest = max(x.device_bytes for x in filled.history())
    then, stream = filled.point_in_time(device="cuda", gpu_bytes=largest), torch.cuda.Stream()
    ids = torch.arange(0, 2000).cuda()
    expected = filled.version(1).load().lookup(ids.cpu())[0]
    with torch.cuda.stream(stream):  # kernels, and memory for its results, which may have to wait for the device
        then.lookup(ids, torch.full((2000,), 10))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        vectors, _, _ = then.lookup(ids, torch.full((2000,), 10))
    assert not stream.query()  # the lookup has not begun
    then.lookup(ids, torch.full((2000,), 20))  # its table goes
    others = [torch.full((2**20,), 255, dtype=torch.uint8, device="cuda") for _ in range(16)]
    stream.synchronize()
    assert torch.equal(vectors.cpu(), expected)
    del others


@needs_gpu
def test_memory_is_kept_to_and_given_back(filled: Series):
    def used() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free

    gpu.usable(torch.device("cuda"))
    largest = max(x.device_bytes for x in filled.history())
    ids, times = asked(100)
    # Loads the kernels, which take memory too.
    filled.point_in_time(device="cuda", gpu_bytes=2 * largest).lookup(ids, times)
    gc.collect()
    before = used()
    then = filled.point_in_time(device="cuda", gpu_bytes=2 * largest)
    for _ in range(3):
        then.lookup(ids, times)
        assert used() - before <= 2 * largest + 2**23  # small blocks come in whole pages
    del then
    gc.collect()
    assert used() - before <= 2**23
    with pytest.raises(DeviceMemoryError, match=rf"gpu_bytes is {largest - 1}, but version \d of series 'user_ctr'"):
        filled.point_in_time(device="cuda", gpu_bytes=largest - 1).lookup(ids, times)


@needs_gpu
def test_what_lies_elsewhere_is_refused(filled: Series):
    ids, times = asked(5)
    with pytest.raises(InvalidIdsError, match=r"ids are torch.int64 on cuda:0: give an int64 tensor, .* on the CPU$"):
        filled.point_in_time().lookup(ids.cuda(), times)
    if torch.cuda.device_count() > 1:
        then = PointInTime(filled.history(), 1000, device="cuda:1")
        with pytest.raises(InvalidIdsError, match="on the CPU or cuda:1"):
            then.lookup(ids.to("cuda:0"), times)
        assert then.lookup(ids.to("cuda:1"), times)[0].device == then.device
