"""Scores by hand, and against loops over single links: values and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys.models.graph_scores import SCORES, Score, cubes

RELATIONS = 3
SCALE = 0.8


def made(name: str, dim: int = 4, relation_dim: int | None = None) -> Score:
    torch.manual_seed(0)
    score = SCORES[name](RELATIONS, dim, relation_dim or dim, 0.5).double()
    for parameter in score.parameters():  # M_r too, which is the identity at first
        torch.nn.init.uniform_(parameter, -SCALE, SCALE)
    return score


def naive(name: str, score: Score, head: Tensor, relation: int, tail: Tensor) -> Tensor:
    """One link's score as its paper has it, with complex numbers where it has them; but for RotatE's norm."""
    vector = score.vectors[relation]
    if name == "transr":
        matrix = score.matrices[relation]
        return -(head @ matrix + vector - tail @ matrix).norm()
    if name == "transe":
        return -(head + vector - tail).norm()
    if name == "distmult":
        return sum((h * r * t for h, r, t in zip(head, vector, tail, strict=True)), torch.zeros(()))
    half = len(head) // 2
    h, t = (torch.complex(x[:half], x[half:]) for x in (head, tail))
    if name == "complex":
        return (h * torch.complex(vector[:half], vector[half:]) * t.conj()).sum().real
    turned = h * torch.polar(torch.ones_like(vector), vector) - t
    return -(turned.abs().square().sum()).sqrt()


def test_transr_by_hand():
    """h M = (1, 4), t M = (2, 1): h M + r - t M = (3, 4), whose length is 5."""
    score = SCORES["transr"](1, 2, 2, 0.1)
    with torch.no_grad():
        score.vectors.copy_(torch.tensor([[4.0, 1.0]]))
        score.matrices.copy_(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
    heads, tails = (torch.tensor([[x]], requires_grad=True) for x in ([1.0, 2.0], [2.0, 0.5]))
    found = score(heads, tails, torch.tensor([0]))
    assert found.tolist() == [[-5.0]]
    found.sum().backward()
    # d/dr = -(3, 4) / 5; d/dh = M d/dr; d/dt = -d/dh; d/dM = (h - t)^T d/dr.
    torch.testing.assert_close(score.vectors.grad, torch.tensor([[-0.6, -0.8]]))
    torch.testing.assert_close(heads.grad, torch.tensor([[[-0.6, -1.6]]]))
    torch.testing.assert_close(tails.grad, torch.tensor([[[0.6, 1.6]]]))
    torch.testing.assert_close(score.matrices.grad, torch.tensor([[[0.6, 0.8], [-0.9, -1.2]]]))


@pytest.mark.parametrize("name", SCORES)
@given(groups=st.integers(0, 3), links=st.integers(0, 4), candidates=st.integers(0, 5), shared=st.booleans())
def test_scores_are_those_of_single_links(name: str, groups: int, links: int, candidates: int, shared: bool):
    """Each link's, and of all candidates for either end of it, with the gradients of what they are made of."""
    score = made(name, relation_dim=3 if name == "transr" else None)
    generator = torch.Generator().manual_seed(groups + 10 * links)
    shapes = ((groups, links), (groups, links), (1 if shared else groups, candidates))
    heads, tails, others = (
        torch.randn(*shape, 4, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes
    )
    index = torch.randint(RELATIONS, (groups,), generator=generator)
    wanted = [heads, tails, others, *score.parameters()]

    found = [score(heads, tails, index)]
    for known, backwards in ((heads, False), (tails, True)):
        queries = score.query(score.project(known, score.maps(index)), index, backwards=backwards)
        found.append(score.match(queries, score.project(others, score.maps(index))))
    assert [tuple(x.shape) for x in found] == [(groups, links), *[(groups, links, candidates)] * 2]

    expected = []
    for group in range(groups):
        relation, here = int(index[group]), others[0 if shared else group]
        for head, tail in zip(heads[group], tails[group], strict=True):
            expected.append([naive(name, score, head, relation, tail)])
            expected[-1] += [naive(name, score, head, relation, other) for other in here]
            expected[-1] += [naive(name, score, other, relation, tail) for other in here]
    mine = torch.cat([found[0].unsqueeze(2), found[1], found[2]], dim=2).flatten(0, 1)  # [G P, 1 + 2 N]
    if not expected:
        assert mine.numel() == 0
        return
    theirs = torch.stack([torch.stack(row) for row in expected])
    torch.testing.assert_close(mine, theirs)
    weights = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((x * weights).sum(), wanted, retain_graph=True, materialize_grads=True)
        for x in (mine, theirs)
    ]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", SCORES)
def test_equal_points_have_a_gradient(name: str):
    """A head that the relation takes exactly to the tail is at distance 0, where a root has no gradient."""
    score = made(name)
    with torch.no_grad():
        score.vectors.zero_()
    point = torch.ones(1, 1, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0])
    queries = score.query(score.project(point, score.maps(index)), index, backwards=False)
    (score.match(queries, score.project(point, score.maps(index))).sum() + score(point, point, index).sum()).backward()
    assert point.grad.isfinite().all()


def test_transr_begins_as_transe():
    torch.manual_seed(0)
    scores = {name: SCORES[name](2, 8, 8, 0.5) for name in ("transr", "transe")}
    scores["transe"].load_state_dict({"vectors": scores["transr"].vectors.detach()})
    heads, tails, index = torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.tensor([1, 0])
    torch.testing.assert_close(scores["transr"](heads, tails, index), scores["transe"](heads, tails, index))


def test_cubes():
    x = torch.tensor([3.0, -2.0, 4.0, 0.0])
    assert float(cubes(x, of_complex=False)) == 27 + 8 + 64
    assert float(cubes(x, of_complex=True)) == pytest.approx(5**3 + 2**3)
    assert made("complex").cubes(torch.tensor([2, 0])).shape == (2,)


def test_widths_that_a_score_cannot_have():
    with pytest.raises(ValueError, match="dim is 5; RotatE takes an even one"):
        SCORES["rotate"](1, 5, 5, 0.1)
    with pytest.raises(ValueError, match="relation_dim is 8, dim 4; only TransR"):
        SCORES["distmult"](1, 4, 8, 0.1)
