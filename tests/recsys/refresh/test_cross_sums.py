"""Cross representations: sums of events' hidden layers, against a plain loop over the events one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys.config import ConfigError, RefreshSettings, UpstreamConfig
from recsys.data.convert import to_batch
from recsys.models.derm import DERM
from recsys.refresh.aggregate import DECAY, aggregate
from recsys.refresh.cross import CrossSums, Recency
from recsys.train.distributed import Environment
from recsys.train.tables import allocate
from tests.recsys.refresh.cross_example import add, mean
from tests.recsys.refresh.daily_example import daily_config
from tests.recsys.refresh.example import MODEL, SCHEMA, events


@settings(max_examples=40, deadline=None)
@given(
    days=st.lists(st.integers(0, 30), max_size=4),
    entities=st.integers(1, 6),
    decay=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_days_of_events_against_one_event_after_the_other(
    environment: Environment, days: list[int], entities: int, decay: float, batch: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    known: dict[int, tuple[Tensor, int]] = {}
    published: dict[int, tuple[Tensor, int]] = {}
    for rows in days:
        ids, times = rng.integers(0, entities, rows) - 2, rng.integers(0, 5, rows)  # many at one time
        vectors = torch.from_numpy(rng.normal(size=(rows, 3))).float()
        for event in np.argsort(times, kind="stable"):
            known[int(ids[event])] = add(known.get(int(ids[event])), vectors[event].double(), decay)
        sums = CrossSums(Recency.of(ids, times), 3, decay)
        for first in range(0, rows, batch):
            sums.add(first, vectors[first : first + batch])
        for part in sums.means(torch.empty(0, dtype=torch.int64), 2, environment):
            had = [published.get(id_, (torch.zeros(3), 0)) for id_ in part.ids.tolist()]
            before, counts = torch.stack([vector for vector, _ in had]), torch.tensor([count for _, count in had])
            now = aggregate(DECAY, decay, before, counts, counts > 0, part.vectors, news=part.events)
            for id_, vector, count in zip(part.ids.tolist(), now, (counts + part.events).tolist(), strict=True):
                published[id_] = vector, count
    assert {id_: count for id_, (_, count) in published.items()} == {id_: count for id_, (_, count) in known.items()}
    for id_, state in known.items():
        torch.testing.assert_close(published[id_][0].double(), mean(state, decay), atol=2e-6, rtol=1e-5)


def test_withdrawn_entities_are_left_out_of_the_means(environment: Environment) -> None:
    sums = CrossSums(Recency.of(np.array([5, 7, 5, 9]), np.array([3, 1, 1, 2])), 2, 0.5)
    sums.add(0, torch.eye(2)[[0, 1, 1, 0]])
    (part,) = sums.means(torch.tensor([7]), 10, environment)
    assert part.ids.tolist() == [5, 9]
    assert part.events.tolist() == [2, 1]
    assert part.timestamps.tolist() == [3, 2]
    torch.testing.assert_close(part.vectors, torch.tensor([[2 / 3, 1 / 3], [1.0, 0.0]]))
    assert list(sums.means(torch.tensor([5, 7, 9]), 10, environment)) == []


@pytest.mark.parametrize("rows", [1, 7])
def test_hidden_layers_are_of_the_events_alone(rows: int) -> None:
    torch.manual_seed(0)
    model = DERM(SCHEMA, MODEL, ["click"])
    allocate(model)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    batch = model.vocabulary.resolve(to_batch(events(rows), SCHEMA))
    vectors = model.eval().cross_vector(batch)
    assert vectors.shape == (rows, MODEL.tokens * MODEL.token_dim)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(rows))
    for row in range(rows):
        alone = model.vocabulary.resolve(to_batch(events(rows).slice(row, 1), SCHEMA))
        torch.testing.assert_close(model.cross_vector(alone)[0], vectors[row])


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"cross_decay is 1\.0; use 0 <= cross_decay < 1"):
        RefreshSettings(cross=True, cross_decay=1.0)
    with pytest.raises(ConfigError, match="name is 'ctr_cross'; let it end otherwise: user_ctr_cross is a series of"):
        UpstreamConfig(name="ctr_cross", source=daily_config().upstream.source)
