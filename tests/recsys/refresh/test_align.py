from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from embedding_store import EmbeddingStore
from recsys.refresh.align import AlignmentError, procrustes, rotated


def turn(dim: int, seed: int = 0, reflect: bool = False) -> Tensor:
    """A random rotation, or one with a reflection; float32 [dim, dim]."""
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)))
    flip = (torch.linalg.det(q) < 0) != reflect
    return torch.cat([-q[:, :1], q[:, 1:]], dim=1) if flip else q


def vectors(rows: int, dim: int, seed: int = 1) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@settings(max_examples=30, deadline=None)
@given(dim=st.sampled_from([1, 2, 8, 33]), seed=st.integers(0, 99), reflect=st.booleans())
def test_a_planted_rotation_is_found(dim: int, seed: int, reflect: bool) -> None:
    old, planted = vectors(20 * dim, dim, seed), turn(dim, seed, reflect)
    rotation, quality = procrustes(old, old @ planted)
    assert rotation.dtype == torch.float32
    assert torch.allclose(rotation, planted, atol=1e-5)
    assert quality.cosine_after == pytest.approx(1.0, abs=1e-5)
    assert quality.cosine_after_p05 == pytest.approx(1.0, abs=1e-5)
    assert quality.shared == 20 * dim
    assert quality.held_out == 4 * dim


def test_the_rotation_keeps_inner_products_whatever_the_vectors() -> None:
    users, items = vectors(300, 16), vectors(300, 16, seed=2)
    rotation, _ = procrustes(users, vectors(300, 16, seed=3))
    assert torch.allclose(rotation @ rotation.T, torch.eye(16), atol=1e-5)
    assert torch.allclose((users @ rotation) @ (items @ rotation).T, users @ items.T, atol=1e-5)


def test_noise_lowers_the_quality_and_unrelated_spaces_have_none() -> None:
    """Measured where the fit has not looked: 64 free dimensions would fit 256 random pairs to a cosine of 0.4."""
    old, planted = vectors(2000, 64), turn(64)
    noisy = normalize(old @ planted + 0.5 * vectors(2000, 64, seed=5), dim=1)
    rotation, quality = procrustes(old, noisy)
    assert 0.8 < quality.cosine_after < 0.95
    assert abs(quality.cosine_before) < 0.2
    assert quality.cosine_after_p05 < quality.cosine_after
    assert float((rotation - planted).abs().max()) < 0.1
    unrelated = procrustes(vectors(256, 64), vectors(256, 64, seed=9))[1]
    assert abs(unrelated.cosine_after) < 0.1
    assert set(unrelated.as_dict()) == {"shared", "held_out", "cosine_before", "cosine_after", "cosine_after_p05"}


def test_length_counts_less_than_direction() -> None:
    """Old aggregates are shorter than new vectors: the rotation is the same."""
    old, planted = vectors(200, 8), turn(8)
    lengths = torch.linspace(0.2, 1.0, 200)[:, None]
    rotation, quality = procrustes(old * lengths, old @ planted)
    assert torch.allclose(rotation, planted, atol=1e-5)
    assert quality.cosine_after == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "least", "message"),
    [
        (torch.ones(31, 8), torch.ones(31, 8), None, "31 entities have a vector in both spaces, 32 are needed"),
        (torch.ones(40, 8), torch.ones(40, 8), 100, "40 entities have a vector in both spaces, 100 are needed"),
        (torch.ones(1, 8), torch.ones(1, 8), 0, "1 entities have a vector in both spaces, 2 are needed"),
        (torch.ones(0, 8), torch.ones(0, 8), None, "0 entities"),
        (torch.ones(99, 8), torch.ones(99, 4), None, r"old is \[99, 8\], new is \[99, 4\]"),
        (torch.full((99, 2), torch.nan), torch.ones(99, 2), None, "not finite"),
    ],
)
def test_what_cannot_be_aligned(old: Tensor, new: Tensor, least: int | None, message: str) -> None:
    with pytest.raises(AlignmentError, match=message):
        procrustes(old, new, least_shared=least)


def test_a_snapshot_is_rotated_piece_by_piece(tmp_path: Path) -> None:
    series = EmbeddingStore(tmp_path).create("user_ctr", dim=8)
    ids, old, rotation = torch.arange(10) - 5, vectors(10, 8), turn(8)
    with series.write(as_of=0, space="ctr-1") as writer:
        writer.append(ids, old)
    pieces = list(rotated(series.latest(), rotation, rows=4))
    assert max(len(piece) for piece, _ in pieces) <= 4
    found = torch.cat([piece for piece, _ in pieces])
    assert sorted(found.tolist()) == ids.tolist()
    turned = torch.cat([piece for _, piece in pieces])
    assert torch.allclose(turned, (old @ rotation)[found + 5], atol=1e-6)
