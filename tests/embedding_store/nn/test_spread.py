"""EntityEmbedding whose rows are spread over ranks: what a model learns on it, and its checkpoints."""

from __future__ import annotations

import copy
import pickle

import torch
import torch.distributed as dist
from torch import nn

from embedding_store import (
    EmbeddingStore,
    EntityEmbedding,
    InvalidArgumentError,
    InvalidIdsError,
    NotFoundError,
    PinMismatchError,
    RankFailedError,
)
from tests.distributed import run_ranks
from tests.embedding_store.nn.layers import IDS, STORED, publish


def trained(path: str, spread: bool) -> tuple[list[float], dict[str, object]]:
    """Losses of a small ranker that learns on this rank's rows, averaged over the ranks."""
    group, rank = dist.group.WORLD if spread else None, dist.get_rank()
    snapshots = [EmbeddingStore(path).series(name).version(1) for name in STORED]
    torch.manual_seed(0)
    layer = EntityEmbedding(
        snapshots, missing="learned", found_feature=True, projection=4, entity_dropout=0.2, group=group
    )
    model = nn.parallel.DistributedDataParallel(nn.Sequential(layer, nn.Linear(layer.out_dim, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator, losses = torch.Generator().manual_seed(rank), []
    known = torch.tensor([7, -5, 2**62, 1, 3])
    for step in range(8):
        torch.manual_seed(step)  # of the dropout, whose draws are the same whatever the tables are
        ids = known[torch.randint(5, (6 + rank,), generator=generator)]
        loss = (model(ids).squeeze(1) - (ids % 2).float()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses, layer.state_dict()


def test_a_model_on_spread_tables_learns_as_on_whole_ones(both: EmbeddingStore):
    publish(both)
    whole, spread = (run_ranks(trained, 2, str(both.path), flag) for flag in (False, True))
    for (losses, state), (expected, expected_state) in zip(spread, whole, strict=True):
        assert losses == expected
        assert losses[-1] != losses[0]
        assert state.keys() == expected_state.keys()
        assert state["_extra_state"] == expected_state["_extra_state"]
    assert whole[0][0] != whole[1][0]


def checkpointed(path: str) -> list[str]:
    """A checkpoint of version 1 in a spread layer on version 2, and what cannot be done with one."""
    store, said = EmbeddingStore(path), list[str]()
    first, second = ([store.series(name).version(version) for name in STORED] for version in (1, 2))
    state = EntityEmbedding(first).state_dict()
    layer = EntityEmbedding(second, group=dist.group.WORLD)
    layer.load_state_dict(state)
    assert torch.equal(layer(IDS), EntityEmbedding(first)(IDS))
    assert torch.equal(copy.deepcopy(layer)(IDS), layer(IDS))
    state["_extra_state"]["pins"][0]["version"] = 9 if dist.get_rank() else 2
    for failing in (lambda: layer.load_state_dict(state), lambda: pickle.dumps(layer)):
        try:
            failing()
        except (NotFoundError, PinMismatchError, RankFailedError, InvalidArgumentError) as error:
            said.append(f"{type(error).__name__}: {error}")
    assert torch.equal(layer(IDS), EntityEmbedding(first)(IDS))
    try:
        layer(IDS.float() if dist.get_rank() else IDS)
    except (InvalidIdsError, RankFailedError) as error:
        said.append(f"{type(error).__name__}: {error}")
    return said


def test_a_spread_layer_opens_the_pins_of_a_checkpoint(both: EmbeddingStore):
    publish(both)
    publish(both, seed=2)
    first, second = run_ranks(checkpointed, 2, str(both.path))
    assert first[0].startswith("PinMismatchError: ")
    assert second[0].startswith("VersionNotFoundError: ")
    assert first[1] == second[1]
    assert "cannot be pickled: save its state_dict" in first[1]
    assert first[2].startswith("RankFailedError: the lookup was refused on rank 1")
    assert second[2].startswith("InvalidIdsError: ids are torch.float32")
