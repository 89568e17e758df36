"""Filtered ranks against a loop over all entities, and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.triples import Graph, Triples
from recsys.train import link_ranks as links
from recsys.train.link_ranks import KnownLinks, LinkRanks, mean_ranks, rank_links

GRAPH = Graph(
    types=("user", "item"),
    rows=(5, 7),
    entities=(np.array([0, 1, 3, 4]), np.array([0, 2, 3, 5, 6])),  # rows 2, and 1 and 4, are nobody's
    relations=("likes", "follows"),
    ends=np.array([[0, 1], [0, 0]]),
)


def triples(*each: tuple[int, int, int]) -> Triples:
    columns = np.array(each, np.int64).reshape(-1, 3).T
    return Triples(columns[0], columns[1], columns[2], np.ones(len(each), np.float32))


class Table:
    """Scores by table: relation -> [heads, tails] of all entities."""

    def __init__(self, *tables: torch.Tensor) -> None:
        self.tables = tables

    def __call__(self, relation: int, known: torch.Tensor, *, backwards: bool) -> torch.Tensor:
        entities = GRAPH.entities[GRAPH.ends[relation, int(backwards)]]
        table = self.tables[relation].T if backwards else self.tables[relation]
        return table[torch.from_numpy(np.searchsorted(entities, known.numpy()))].clone()


def naive(score: Table, link: tuple[int, int, int], known: set[tuple[int, int, int]], *, backwards: bool) -> float:
    """Count what is above and what ties, entity by entity."""
    head, relation, tail = link
    end = tail if not backwards else head
    entities = GRAPH.entities[GRAPH.ends[relation, int(not backwards)]].tolist()
    row = score(relation, torch.tensor([tail if backwards else head]), backwards=backwards)[0].tolist()
    scores = dict(zip(entities, row, strict=True))
    above = ties = 0
    for other in entities:
        changed = (other, relation, tail) if backwards else (head, relation, other)
        if other == end or changed in known:
            continue
        above += scores[other] > scores[end]
        ties += scores[other] == scores[end]
    return 1 + above + ties / 2


def linked(relation: int) -> st.SearchStrategy[tuple[int, int, int]]:
    heads, tails = (GRAPH.entities[kind].tolist() for kind in GRAPH.ends[relation])
    return st.tuples(st.sampled_from(heads), st.just(relation), st.sampled_from(tails))


@given(
    ranked=st.lists(st.one_of(linked(0), linked(1)), max_size=8),
    more=st.lists(st.one_of(linked(0), linked(1)), max_size=20),
    seed=st.integers(0, 100),
    queries=st.sampled_from([1, 2, 1024]),
)
def test_ranks_are_the_naive_ones(ranked: list, more: list, seed: int, queries: int):
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randint(4, (4, 5), generator=generator), torch.randint(4, (4, 4), generator=generator)]
    score, known = Table(*(table.float() for table in tables)), KnownLinks(triples(*ranked, *more), GRAPH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(links, "QUERIES", queries)
        found = rank_links(score, triples(*ranked), known, GRAPH)
    for backwards, ranks in ((False, found.tails), (True, found.heads)):
        assert ranks.tolist() == [naive(score, link, {*ranked, *more}, backwards=backwards) for link in ranked]


def test_filter_leaves_out_what_is_known_of_this_question_alone():
    """User 0 likes item 2; 3 and 6 score above it. Known of another user, or as another relation, they stay."""
    score = Table(torch.tensor([[0.0, 1.0, 2.0, 0.0, 3.0]] * 4), torch.zeros(4, 4))
    asked = triples((0, 0, 2))
    for known, rank in (
        ([], 3),
        ([(0, 0, 3), (0, 0, 6)], 1),
        ([(0, 0, 6)], 2),
        ([(1, 0, 6), (3, 0, 3)], 3),
        ([(0, 1, 3), (0, 1, 0)], 3),
    ):
        found = rank_links(score, asked, KnownLinks(Triples.join((asked, triples(*known))), GRAPH), GRAPH)
        assert found.tails.tolist() == [rank], known


def test_a_model_that_says_the_same_of_all_is_in_the_middle():
    asked = triples((0, 0, 2), (3, 1, 4))
    found = rank_links(Table(torch.zeros(4, 5), torch.zeros(4, 4)), asked, KnownLinks(asked, GRAPH), GRAPH)
    assert found.tails.tolist() == [3.0, 2.5]
    assert found.heads.tolist() == [2.5, 2.5]


def test_figures():
    ranks = LinkRanks(np.array([1.0, 4.0]), np.array([2.0, 20.0]))
    assert ranks.record() == {
        "mrr": pytest.approx((1 + 1 / 4 + 1 / 2 + 1 / 20) / 4),
        "hits@1": 0.25,
        "hits@3": 0.5,
        "hits@10": 0.75,
    }
    assert np.isnan(LinkRanks(np.empty(0), np.empty(0)).mrr)


def test_what_cannot_be_ranked():
    nothing = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="a score is NaN"):
        mean_ranks(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]), nothing, nothing)
    stray = triples((2, 0, 2))
    with pytest.raises(ValueError, match="row 2 is not among the graph's entities"):
        rank_links(Table(torch.zeros(5, 5), torch.zeros(4, 4)), stray, KnownLinks(stray, GRAPH), GRAPH)
