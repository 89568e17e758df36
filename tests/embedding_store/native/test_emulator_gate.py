"""The kernels that go through the gate without a GPU, several beside a writer: test_gate.py has the protocol."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings

from tests.embedding_store.native.emulation import COMPILER, ORDERS, address, compiled

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

READERS, VERSIONS = 3, 6


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compiled("emulate_gate.cpp", tmp_path_factory)
    library.emulate_gate.restype = ctypes.c_int64
    return library


def torn(emulator: ctypes.CDLL, order: int, *, counted: bool) -> tuple[int, list[int]]:
    """How many readings were of more than one version, and the last version that each reader has read."""
    seen = torch.zeros(READERS, dtype=torch.int64)
    numbers = map(ctypes.c_int64, (READERS, VERSIONS))
    return emulator.emulate_gate(*numbers, int(counted), ctypes.c_uint64(order), address(seen)), seen.tolist()


@settings(max_examples=20, deadline=None)
@given(order=ORDERS)
def test_nobody_reads_half_a_version_and_all_are_counted_out(emulator: ctypes.CDLL, order: int):
    count, seen = torn(emulator, order, counted=True)
    assert count == 0
    assert all(0 <= version <= VERSIONS for version in seen)


def test_versions_change_while_they_are_read(emulator: ctypes.CDLL):
    drawn = [torn(emulator, order, counted=True) for order in range(20)]
    assert {count for count, _ in drawn} == {0}
    assert len({version for _, seen in drawn for version in seen}) > 2


def test_past_the_gate_some_order_tears_a_version(emulator: ctypes.CDLL):
    assert max(torn(emulator, order, counted=False)[0] for order in range(20)) > 0
