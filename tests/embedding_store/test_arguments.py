"""What callers give: which integers, numbers, devices and tensors are taken, and how the others are named."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from embedding_store import InvalidArgumentError, InvalidVectorsError
from embedding_store.arguments import cpu_tensor, device, integer, is_readable, real
from embedding_store.write.sums import row_sums


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.int64(3), torch.tensor(3), np.array(3)])
def test_every_integer_is_taken(value: Any):
    assert integer(value, "dim", least=3, most=3) == 3
    assert type(integer(value, "dim")) is int


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(True), 3.0, np.float64(3), "3", None, [3], 2, 5])
def test_what_is_no_integer_of_the_range_is_named(value: Any):
    with pytest.raises(InvalidArgumentError, match=r"^dim is .*; use 3 \.\. 4, please$"):
        integer(value, "dim", least=3, most=4, why=", please")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0, 11, True, "1", None])
def test_what_is_no_number_of_the_range_is_named(value: Any):
    assert real(np.float32(10), "seconds", "up to 10", above=0, most=10) == 10.0
    with pytest.raises(InvalidArgumentError, match=r"^seconds is .*; use up to 10$"):
        real(value, "seconds", "up to 10", above=0, most=10)


def test_a_device_that_is_none_is_named():
    assert device("cpu") == torch.device("cpu")
    for value in ("foo", "cuda:x", "", None):
        with pytest.raises(InvalidArgumentError, match=r"^device is .*; use cpu or cuda"):
            device(value)
    if torch.cuda.is_available():
        with pytest.raises(InvalidArgumentError, match=r"^device is 'cuda:99'; GPUs here"):
            device("cuda:99")


class OnAGpu(Tensor):
    """A tensor that says it lies on a GPU."""

    copies = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:0")

    def cpu(self) -> Tensor:
        OnAGpu.copies += 1
        return self.as_subclass(Tensor).clone()


def test_a_tensor_elsewhere_is_copied_to_the_cpu():
    vectors = torch.arange(6.0).view(2, 3)
    there = vectors.as_subclass(OnAGpu)
    assert not is_readable(there)
    found = cpu_tensor(there, "vectors", InvalidVectorsError)
    assert (OnAGpu.copies, found.tolist()) == (1, vectors.tolist())
    assert is_readable(found)
    assert found.data_ptr() != vectors.data_ptr()


def test_views_and_parameters_are_read_as_what_they_say():
    numbers = torch.complex(torch.arange(3.0), torch.arange(3.0) + 1)
    views = {
        "negative": (numbers.conj().imag, [-1, -2, -3]),
        "strided": (torch.arange(9.0)[::4], [0, 4, 8]),
        "grad": (torch.nn.Parameter(torch.ones(2)), [1, 1]),
        "subclass": (torch.ones(2).as_subclass(type("Named", (Tensor,), {})), [1, 1]),
        "big-endian": (np.array([1, 2**40], ">i8"), [1, 2**40]),
        "big-endian floats": (np.array([1.5, -2], ">f4"), [1.5, -2]),
        "list": ([1, 2], [1, 2]),
    }
    assert views["negative"][0].is_neg()
    for name, (array, values) in views.items():
        found = cpu_tensor(array, "ids", InvalidVectorsError)
        assert is_readable(found), name
        assert found.tolist() == values, name


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (torch.empty(2, 3, device="meta"), "vectors are a Tensor on meta: give a plain tensor that holds values"),
        (FakeTensorMode().from_tensor(torch.ones(2, 3)), "vectors are a FakeTensor on cpu"),
        (torch.ones(2, 3).to_sparse(), r"vectors are sparse \(torch.sparse_coo\): give a dense tensor"),
        (torch.nested.nested_tensor([torch.ones(3)], layout=torch.jagged), "vectors are nested"),
        (torch._efficientzerotensor(2, 3), "without memory of its own"),
        (np.array(["a"]), "a NumPy array of <U1, of which torch makes no tensor"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "masked array"),
        ([[1.0], [1.0, 2.0]], "of type list, of which torch makes no tensor"),
        (None, "of type NoneType"),
    ],
)
def test_what_holds_no_values_is_named(array: Any, message: str):
    with pytest.raises(InvalidVectorsError, match=message):
        cpu_tensor(array, "vectors", InvalidVectorsError)
    assert not isinstance(array, Tensor) or not is_readable(array)


def test_a_tensor_inside_a_function_transform_is_named():
    with pytest.raises(InvalidVectorsError, match=r"outside of torch\.func"):
        torch.func.vmap(lambda x: cpu_tensor(x, "vectors", InvalidVectorsError))(torch.ones(2, 3))


def test_native_code_gets_only_what_it_can_read(monkeypatch: pytest.MonkeyPatch):
    assert row_sums(torch.ones(2, 3).t().contiguous().t()).tolist() == pytest.approx([2 * 3**0.5, 2, 2, 2])
    monkeypatch.setattr(ctypes, "c_void_p", None)  # no address is ever asked for
    for vectors in (
        torch.ones(2, 3, dtype=torch.float64),
        torch.ones(6),
        torch.ones(2, 3, device="meta"),
        torch.ones(2, 3).as_subclass(OnAGpu),
        FakeTensorMode().from_tensor(torch.ones(2, 3)),
        torch._efficientzerotensor(2, 3),
    ):
        with pytest.raises(InvalidVectorsError, match="vectors are"):
            row_sums(vectors)
