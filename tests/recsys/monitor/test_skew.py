from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import recsys.monitor.skew as skew_module
import recsys.monitor.traffic as traffic_module
from embedding_store import EmbeddingStore
from recsys.monitor.quality import Quality, lineage, measure
from recsys.monitor.skew import DAYS, PairQuality, measure_pair
from tests.recsys.monitor.publishing import DIM, ITEMS, USERS, DayEvents, day_events, noisy, publish, replay, vectors_of


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path)


def pair_of(quality: Quality) -> PairQuality:
    assert quality.pair is not None
    return quality.pair


def vectors_at(store: EmbeddingStore, name: str, behind: int, ids: Tensor) -> np.ndarray:
    return lineage(store.series(name), 4)[behind].load().lookup(ids)[0].numpy()


def test_every_pair_of_versions_against_a_slow_reference(store: EmbeddingStore) -> None:
    skew = pair_of(replay(store, 4, noisy)).skew
    events = day_events()
    positives = {(int(u), int(i)) for u, i, y in zip(events.users, events.items, events.labels, strict=True) if y == 1}
    wanted: dict[int, set[int]] = {}
    for user, item in positives:
        wanted.setdefault(user, set()).add(item)
    ids = sorted(wanted)
    for u in range(3):
        for i in range(3):
            scores = (
                vectors_at(store, "user_ctr", u, events.users) * vectors_at(store, "item_ctr", i, events.items)
            ).sum(axis=1)
            assert skew.auc[u][i] == pytest.approx(roc_auc_score(events.labels, scores), abs=1e-6)
            users, items = vectors_at(store, "user_ctr", u, torch.tensor(ids)), vectors_at(store, "item_ctr", i, ITEMS)
            found = [
                len(wanted[user] & {int(ITEMS[row]) for row in np.argsort(-(items @ vector))[:10]}) / len(wanted[user])
                for user, vector in zip(ids, users, strict=True)
            ]
            assert skew.recall[u][i] == pytest.approx(np.mean(found), abs=1e-6)
    assert (skew.events, skew.positives, skew.users, skew.candidates) == (
        3000,
        int(events.labels.sum()),
        len(ids),
        len(ITEMS),
    )
    grid = np.array(skew.auc, float)
    assert skew.loss == pytest.approx(1 - min(grid[0][1], grid[1][0]) / grid[0][0])
    assert skew.loss_ci95 is not None
    assert skew.loss_ci95[0] < skew.loss < skew.loss_ci95[1]


def test_planted_skew_is_seen(store: EmbeddingStore) -> None:
    """A retrain that turns the space: each version is as good as ever, mixed they are worth nothing."""
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(9))).Q
    steady = pair_of(replay(store, 2)).skew
    assert steady.loss == pytest.approx(0.0, abs=1e-9)
    turned = pair_of(replay(store, 1, lambda owner, day, vectors: vectors @ turn, first=2)).skew
    assert turned.auc[0][0] == pytest.approx(steady.auc[0][0], abs=1e-6)
    assert turned.auc[1][2] == pytest.approx(steady.auc[0][0], abs=1e-6)
    assert turned.loss is not None
    assert turned.loss > 0.2
    assert turned.loss_ci95 is not None
    assert turned.loss_ci95[0] > 0.1


def test_either_side_may_be_the_one_that_is_behind(store: EmbeddingStore) -> None:
    """Users' vectors change, items' do not: only users of X - 1 against items of X are worse."""
    replay(store, 1, lambda owner, day, vectors: vectors if owner == "item" else vectors.flip(0))
    skew = pair_of(replay(store, 1, first=1)).skew
    grid = np.array([row[:2] for row in skew.auc[:2]], float)
    assert grid[0][1] == pytest.approx(grid[0][0])
    assert grid[1][0] < 0.6 < grid[0][0]
    assert skew.loss == pytest.approx(1 - grid[1][0] / grid[0][0])


def test_ageing_follows_the_days_behind(store: EmbeddingStore) -> None:
    quality = pair_of(replay(store, 9, noisy))
    ages = {age.days: age for age in quality.ageing}
    assert tuple(ages) == DAYS
    assert ages[14].auc is None
    assert ages[1].auc == ages[1].current_auc == quality.skew.auc[1][1]
    assert ages[0].auc == quality.skew.auc[0][0]
    aucs = [ages[days].auc for days in (0, 1, 2, 3, 5, 7)]
    assert aucs == sorted(aucs, key=lambda auc: -(auc or 0))
    assert all(age.covered == 1.0 for age in quality.ageing if age.auc is not None)


def test_a_missing_day_shows_what_a_reader_would_have_got(store: EmbeddingStore) -> None:
    replay(store, 2, noisy)
    ages = {age.days: age for age in pair_of(replay(store, 1, noisy, first=4)).ageing}
    assert ages[1].auc == ages[2].auc == ages[3].auc != ages[0].auc  # of day 1
    assert ages[5].auc is None


def test_ageing_counts_who_has_no_vector_yet(store: EmbeddingStore) -> None:
    half = len(USERS) // 2
    publish(store, "user_ctr", USERS[:half], vectors_of(len(USERS), 1)[:half], day=0)
    publish(store, "item_ctr", ITEMS, vectors_of(len(ITEMS), 2), day=0)
    ages = {age.days: age for age in pair_of(replay(store, 1, first=1)).ageing}
    events = day_events()
    known = torch.isin(events.users, USERS[:half])
    assert ages[1].covered == pytest.approx(float(known.double().mean()))
    assert ages[0].covered == 1.0
    scores = (
        vectors_at_first(store, "user_ctr", events.users) * vectors_at_first(store, "item_ctr", events.items)
    ).sum(axis=1)
    assert ages[1].auc == pytest.approx(roc_auc_score(events.labels[known], scores[known.numpy()]), abs=1e-6)
    assert ages[0].current_auc == ages[1].auc


def vectors_at_first(store: EmbeddingStore, name: str, ids: Tensor) -> np.ndarray:
    return store.series(name).version(1).load().lookup(ids)[0].numpy()


@pytest.mark.parametrize("kind", ["none", "unlabelled", "negative", "positive"])
def test_days_that_leave_figures_undefined(store: EmbeddingStore, kind: str) -> None:
    replay(store, 2)
    events = day_events(rows=0 if kind == "none" else 50)
    events = DayEvents(
        events.users,
        events.items,
        torch.full_like(events.labels, float(kind == "positive")),
        torch.full_like(events.mask, kind != "unlabelled"),
    )
    quality = pair_of(measure(store, "ctr", {"user_ctr": 2, "item_ctr": 2}, events.traffic))
    assert {value for row in quality.skew.auc for value in row} == {None}
    assert (quality.skew.loss, quality.skew.loss_ci95) == (None, None)
    assert all(age.auc is None for age in quality.ageing)
    assert (quality.skew.recall[0][0] is None) == (kind != "positive")


def test_users_and_items_of_two_spaces_are_no_pair(store: EmbeddingStore) -> None:
    publish(store, "user_ctr", USERS, vectors_of(len(USERS), 1), day=0, space="ctr-1")
    publish(store, "item_ctr", ITEMS, vectors_of(len(ITEMS), 2), day=0, space="ctr-2")
    quality = pair_of(measure(store, "ctr", {"user_ctr": 1, "item_ctr": 1}, day_events().traffic))
    assert quality.skew.auc[0][0] is None
    assert quality.ageing[0].auc is None


def test_samples_bound_what_is_scored(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, size in (
        (traffic_module, "EVENTS", 500),
        (skew_module, "USERS", 20),
        (skew_module, "CANDIDATES", 30),
    ):
        monkeypatch.setattr(module, name, size)
    replay(store, 2)
    whole = measure_pair(
        *(lineage(store.series(f"{owner}_ctr"), 2) for owner in ("user", "item")),
        day_events().traffic,
    ).skew
    assert whole.events == 500
    assert whole.users == 20
    assert 30 <= whole.candidates <= len(ITEMS)
