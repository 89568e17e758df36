from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import INTERACTIONS
from recsys.models.interactions import DCNv2, MaskNet, TokenMixing, TransformerLayer, build_interaction
from recsys.models.jagged import JaggedLayout


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(INTERACTIONS),
    rows=st.integers(0, 5),
    tokens_in=st.integers(1, 6),
    tokens_out=st.integers(1, 6),
    heads=st.sampled_from([1, 2, 4]),
)
def test_every_module_maps_tokens_to_tokens(name, rows, tokens_in, tokens_out, heads):
    module = build_interaction(name, tokens_in, tokens_out, 8, heads=heads, dropout=0.1)
    x = torch.randn(rows, tokens_in, 8, requires_grad=True)
    y = module(x)
    assert y.shape == (rows, tokens_out, 8)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_unknown_module_names_the_known_ones():
    with pytest.raises(ValueError, match="'attention' is unknown; use one of masknet, dcnv2, transformer, mlp"):
        build_interaction("attention", 1, 1, 4, heads=1)


def test_masknet_is_its_formula():
    torch.manual_seed(0)
    m, m_out, d = 3, 2, 4
    block = MaskNet(m, m_out, d).double()
    x = torch.randn(5, m, d, dtype=torch.float64)

    def layer_norm(v, layer):
        return (v - v.mean()) / (v.var(unbiased=False) + layer.eps).sqrt() * layer.weight + layer.bias

    for row, got in zip(x, block(x), strict=True):
        v = row.reshape(-1)
        first, _, second = block.mask
        mask = second.weight @ torch.relu(first.weight @ v + first.bias) + second.bias
        normed = torch.cat([layer_norm(token, block.token_norm) for token in row])
        out = torch.relu(layer_norm(block.project.weight @ (normed * mask) + block.project.bias, block.norm))
        torch.testing.assert_close(got, out.reshape(m_out, d))


def test_dcnv2_is_its_formula():
    torch.manual_seed(0)
    m, m_out, d = 3, 2, 4
    module = DCNv2(m, m_out, d).double()
    x = torch.randn(5, m, d, dtype=torch.float64)
    for row, got in zip(x, module(x), strict=True):
        x0 = crossed = row.reshape(-1)
        for down, up in module.cross:
            weight = up.weight @ down.weight
            assert weight.shape == (m * d, m * d)
            crossed = x0 * (weight @ crossed + up.bias) + crossed
        expected = module.project.weight @ crossed + module.project.bias
        torch.testing.assert_close(got, expected.reshape(m_out, d))


def test_token_mixing_is_linear_over_tokens():
    module = TokenMixing(3, 2)
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(module(x), torch.einsum("om,bmd->bod", module.linear.weight, x))


@pytest.mark.parametrize("name", INTERACTIONS)
def test_gradients_agree_with_finite_differences(name):
    torch.manual_seed(0)
    module = build_interaction(name, 2, 3, 4, heads=2).double()
    x = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 6), max_size=5), heads=st.sampled_from([1, 2]))
def test_transformer_over_jagged_rows_is_the_transformer_of_each_row(lengths, heads):
    torch.manual_seed(0)
    layer = TransformerLayer(4, heads)
    rows = [torch.randn(length, 4) for length in lengths]
    packed = torch.cat(rows) if rows else torch.zeros(0, 4)
    got = layer(packed, JaggedLayout.build(torch.tensor(lengths, dtype=torch.int64)))
    expected = [layer(row.unsqueeze(0)).squeeze(0) for row in rows if len(row)]
    torch.testing.assert_close(got, torch.cat(expected) if expected else torch.zeros(0, 4))


def test_dropout_only_while_training():
    layer = TransformerLayer(8, 2, dropout=0.5)
    x = torch.randn(2, 3, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
