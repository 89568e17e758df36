from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import INTERACTIONS, ModelConfig
from recsys.models.dhen import DHEN, DHENLayer


def test_layer_is_the_normed_sum_of_its_modules_and_the_shortcut():
    torch.manual_seed(0)
    x = torch.randn(4, 5, 8)
    layer = DHENLayer(("masknet", "mlp"), 5, 3, 8)
    masknet, mlp = layer.interactions
    shortcut = torch.einsum("om,bmd->bod", layer.shortcut.linear.weight, x)
    torch.testing.assert_close(layer(x), layer.norm(masknet(x) + mlp(x) + shortcut))

    equal = DHENLayer(("transformer",), 5, 5, 8, heads=2)
    torch.testing.assert_close(equal(x), equal.norm(equal.interactions[0](x) + x))


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(0, 4),
    tokens_in=st.integers(1, 7),
    tokens=st.integers(1, 4),
    layers=st.lists(st.lists(st.sampled_from(INTERACTIONS), min_size=1, max_size=2), min_size=1, max_size=3),
)
def test_backbone_puts_out_the_configured_tokens(rows, tokens_in, tokens, layers):
    config = ModelConfig(token_dim=8, tokens=tokens, layers=tuple(map(tuple, layers)))
    backbone = DHEN(tokens_in, config)
    y = backbone(torch.randn(rows, tokens_in, 8))
    assert y.shape == (rows, tokens, 8)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
