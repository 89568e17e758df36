from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.models.jagged import JaggedLayout
from recsys.models.sequence import SequenceEncoder

LENGTHS = st.lists(st.integers(0, 9), max_size=6)


def _encoder(**options) -> SequenceEncoder:
    torch.manual_seed(0)
    return SequenceEncoder(8, **{"layers": 2, "heads": 2, "max_length": 5, **options})


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, max_length=st.sampled_from([0, 1, 5]), layers=st.integers(0, 2), timed=st.booleans())
def test_each_row_is_encoded_as_if_it_were_alone_and_cut(lengths, max_length, layers, timed):
    encoder = _encoder(layers=layers, max_length=max_length, timed=timed)
    rows = [torch.randn(length, 8) for length in lengths]
    ages = [torch.randint(0, 32, (length,)) for length in lengths]
    values = torch.cat([*rows, torch.zeros(0, 8)]).requires_grad_()
    both = encoder(values, torch.tensor(lengths, dtype=torch.int64), torch.cat([*ages, torch.zeros(0).long()]))
    assert both.shape == (len(lengths), 2, 8)
    for got, row, age in zip(both, rows, ages, strict=True):
        recent, recent_ages = row[-max_length:], age[-max_length:]
        alone = encoder(recent, torch.tensor([len(recent)]), recent_ages)
        torch.testing.assert_close(got, alone.squeeze(0))
        torch.testing.assert_close(got[1], recent.sum(0) / max(len(recent), 1))
    both.sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_an_empty_row_is_the_learned_token_and_zeros():
    encoder = _encoder()
    out = encoder(torch.randn(2, 8), torch.tensor([0, 2, 0]))
    for row in (0, 2):
        assert torch.equal(out[row, 0], encoder.empty)
        assert torch.equal(out[row, 1], torch.zeros(8))
    out.sum().backward()
    assert torch.equal(encoder.empty.grad, torch.full((8,), 2.0))


def test_position_counts_from_the_end_and_age_matters():
    encoder = _encoder(timed=True)
    values, ages = torch.randn(3, 8), torch.tensor([9, 5, 1])
    base = encoder(values, torch.tensor([3]), ages)
    assert not torch.allclose(base, encoder(values.flip(0), torch.tensor([3]), ages.flip(0)))
    assert not torch.allclose(base, encoder(values, torch.tensor([3]), ages + 1))
    base[:, 0].square().sum().backward()
    used = encoder.position.grad.abs().sum(1) > 0
    assert used.tolist() == [True, True, True, False, False]


def test_positions_beyond_the_table_share_its_last_row():
    encoder = _encoder(max_length=0, layers=0)
    length = len(encoder.position) + 3
    encoder(torch.randn(length, 8), torch.tensor([length])).square().sum().backward()
    assert (encoder.position.grad.abs().sum(1) > 0).all()


def test_a_timed_sequence_without_ages_is_an_error():
    with pytest.raises(ValueError, match="given no ages"):
        _encoder(timed=True)(torch.randn(2, 8), torch.tensor([2]))


def test_autocast_keeps_results_close():
    encoder = _encoder()
    values, lengths = torch.randn(9, 8), torch.tensor([4, 0, 5])
    full = encoder(values, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(values, lengths)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, width=st.integers(0, 4))
def test_layout_pads_packs_and_averages(lengths, width):
    rows = [torch.randn(length, 2) for length in lengths]
    values = torch.cat([*rows, torch.zeros(0, 2)])
    layout = JaggedLayout.build(torch.tensor(lengths, dtype=torch.int32), width)
    assert layout.positions(len(values)).tolist() == [step for length in lengths for step in range(length)]
    padded, mean, visible = layout.pad(values), layout.mean(values), layout.visible()
    assert padded.shape == (len(lengths), layout.width, 2)
    shown = [row[: layout.width] for row in rows]
    for index, row in enumerate(shown):
        assert torch.equal(padded[index, : len(row)], row)
        assert not padded[index, len(row) :].any()
        torch.testing.assert_close(mean[index], row.sum(0) / max(len(row), 1))
        assert int(visible[index].sum()) == max(len(row), 1)
    kept = [torch.cat((cut, torch.zeros_like(row[len(cut) :]))) for cut, row in zip(shown, rows, strict=True)]
    assert torch.equal(layout.pack(padded, len(values)), torch.cat([*kept, torch.zeros(0, 2)]))
