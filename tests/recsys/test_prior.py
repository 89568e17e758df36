import numpy as np
import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.prior import Prior


def test_shares_worked_by_hand():
    prior = Prior.count(np.array([7, -3, 7, 7, 5]), np.array([True, True, True, False, False]))
    assert prior.ids.tolist() == [-3, 5, 7]
    torch.testing.assert_close(prior.values.exp(), torch.tensor([2, 1, 3]) / 6)  # 1, 0 and 2 positives, and 1 each
    torch.testing.assert_close(prior.of(torch.tensor([7, 99, -3])).exp(), torch.tensor([3, 0.5, 2]) / 6)


def test_without_events_all_items_are_alike():
    nothing = Prior.count(np.zeros(0, np.int64), np.zeros(0, bool))
    assert nothing.of(torch.tensor([1, 2])).tolist() == [0, 0]


def test_who_is_withdrawn_has_no_share():
    prior = Prior.count(np.array([7, -3, 5]), np.array([True, False, True])).without(torch.tensor([5, 99]))
    assert (prior.ids.tolist(), prior.withdrawn.tolist()) == ([-3, 7], [5, 99])
    back = prior.without(torch.tensor([99]))
    assert (back.ids.tolist(), back.withdrawn.tolist()) == ([-3, 7], [99])
    torch.testing.assert_close(back.of(torch.tensor([5])).exp() * 2, back.values[:1].exp())  # until it is counted


def test_what_is_published_is_what_is_read(tmp_path):
    prior = Prior.count(np.array([9, 2, 2]), np.array([True, True, True])).without(torch.tensor([4, 12]))
    store = EmbeddingStore(tmp_path)
    ids, values = prior.rows()
    for name, dim in (("item_ctr.prior", 1), ("item_ctr", 2)):
        with store.create(name, dim=dim).write(as_of=1, space="s") as writer:
            writer.append(ids.flip(0), values.flip(0).expand(-1, dim))
    found = Prior.load(store.series("item_ctr.prior").latest())
    assert torch.equal(found.ids, prior.ids)
    assert torch.equal(found.values, prior.values)
    assert torch.equal(found.withdrawn, prior.withdrawn)
    with pytest.raises(ValueError, match=r"has 2 dimensions, a prior has one: read item_<upstream>.prior"):
        Prior.load(store.series("item_ctr").latest())
