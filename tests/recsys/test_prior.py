import numpy as np
import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.prior import Prior


def test_shares_worked_by_hand():
    prior = Prior.count(np.array([7, -3, 7, 7, 5]), np.array([True, True, True, False, False]))
    assert prior.ids.tolist() == [-3, 5, 7]
    torch.testing.assert_close(prior.values.exp(), torch.tensor([2, 1, 3]) / 6)  # 1, 0 and 2 positives, and 1 each
    torch.testing.assert_close(prior.of(torch.tensor([7, 99, -3])).exp(), torch.tensor([3, 1, 2]) / 6)


def test_without_events_all_items_are_alike():
    nothing = Prior.count(np.zeros(0, np.int64), np.zeros(0, bool))
    assert nothing.of(torch.tensor([1, 2])).tolist() == [0, 0]


def test_what_is_published_is_what_is_read(tmp_path):
    prior = Prior.count(np.array([9, 2, 2]), np.array([True, True, True]))
    store = EmbeddingStore(tmp_path)
    for name, dim in (("item_ctr.prior", 1), ("item_ctr", 2)):
        with store.create(name, dim=dim).write(as_of=1, space="s") as writer:
            writer.append(prior.ids.flip(0), prior.values.flip(0)[:, None].expand(-1, dim))
    found = Prior.load(store.series("item_ctr.prior").latest())
    assert torch.equal(found.ids, prior.ids)
    assert torch.equal(found.values, prior.values)
    with pytest.raises(ValueError, match=r"has 2 dimensions, a prior has one: read item_<upstream>.prior"):
        Prior.load(store.series("item_ctr").latest())
