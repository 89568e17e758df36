"""What a lookup of several ranks does before and after they exchange ids and rows, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store.dtypes import DTYPES, decode, encode
from embedding_store.format.index import hash_ids, home
from embedding_store.native import ops, reference
from tests.embedding_store.native.test_ops import EXTREMES, INT64, OUTS, same_bits

INT8 = ("int8", torch.float32)


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(INT64 | st.integers(-20, 20) | st.sampled_from(EXTREMES), max_size=200), parts=st.integers(1, 70))
def test_distinct_ids_come_part_after_part(ids, parts):
    asked = torch.tensor(ids, dtype=torch.int64)
    for module in (ops, reference):
        found, counts, places = module.distinct(asked, parts)
        assert sorted(found.tolist()) == sorted(set(ids))
        assert torch.equal(found[places], asked)
        of = [int(part) for part in home(hash_ids(found.numpy()), parts)]
        assert of == sorted(of)
        assert counts.tolist() == [of.count(part) for part in range(parts)]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    dim=st.integers(1, 40) | st.just(128),
    name=st.sampled_from(list(DTYPES)),
    out=st.sampled_from(OUTS),
    data=st.data(),
)
def test_gather_gives_the_bits_of_the_reference(rows, dim, name, out, data):
    kind, count = DTYPES[name], sum(rows)
    stored = encode(torch.randn(count, dim), kind)
    columns = [stored.vector.view(torch.uint8).flatten(1)]
    columns.append(torch.zeros(count, -columns[0].shape[1] % 4, dtype=torch.uint8))
    columns += [x[:, None].view(torch.uint8) for x in (stored.scale, stored.offset) if x is not None]
    there = torch.arange(count) % 3 > 0
    columns.append(there[:, None].to(torch.int32).view(torch.uint8))
    own, received = (part.contiguous() for part in torch.cat(columns, 1).split(rows))
    places = torch.tensor(data.draw(st.lists(st.integers(-2, count - 1), max_size=90)), dtype=torch.int64)
    there, vectors = torch.cat((there, torch.zeros(1, dtype=torch.bool))), decode(stored, dim, kind)
    expected = torch.cat((vectors, torch.zeros(1, dim))).where(there[:, None], 0.0)[places.clamp(-1)]
    for module in (ops, reference):
        vectors, found = module.gather(places, own, received, dim, name, out)
        assert same_bits(vectors + 0.0, expected.to(out) + 0.0)  # one zero is as good as another
        assert torch.equal(found, there[places.clamp(-1)])


def test_places_and_records_that_do_not_fit():
    records = torch.zeros(2, 20, dtype=torch.uint8)
    with pytest.raises(ValueError, match="places has 4, beyond all rows"):
        ops.gather(torch.tensor([4]), records, records, 5, *INT8)
    for wrong in (records[:, :19], records.to(torch.int32), torch.zeros(2, 24, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"own is not a contiguous uint8 tensor \[N, 20\]"):
            ops.gather(torch.tensor([0]), wrong, records, 5, *INT8)


def test_both_pass_opcheck():
    places, records = torch.tensor([[0, -1], [3, 1]]), torch.zeros(2, 20, dtype=torch.uint8)
    for op, inputs in (
        (torch.ops.embedding_store.distinct, (torch.tensor([1, 9, 3]), 3)),
        (torch.ops.embedding_store.gather, (places, records, records, 5, *INT8)),
    ):
        outcome = torch.library.opcheck(op.default, inputs)
        assert set(outcome.values()) == {"SUCCESS"}, (op, outcome)
