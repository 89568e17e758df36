"""A cycle on two real gloo ranks, and that it publishes what one rank does."""

from pathlib import Path

import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.folders import store_folder
from recsys.refresh.cycle import refresh_upstream
from recsys.refresh.first import load_towers
from recsys.train.distributed import Environment
from tests.distributed import run_ranks
from tests.recsys.refresh.daily_example import DAYS, PLAIN, daily_config, records, snapshots, start_run
from tests.recsys.refresh.example import SCHEMA

CONFIG = daily_config(study=True)


def on_two_ranks(data: Path, out: Path) -> list[str]:
    first = refresh_upstream(CONFIG, data, out, every=True)
    again = refresh_upstream(CONFIG, data, out, every=True)
    return [record.key for record in (*first, *again)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, environment: Environment) -> tuple[Path, Path, list[list[str]]]:
    """Data, run and what each of two ranks was told of two days."""
    data, out = start_run(tmp_path_factory.mktemp("two"), DAYS[:2], environment)
    return data, out, run_ranks(on_two_ranks, 2, data, out)


def test_the_ranks_agree_and_publish_once(two: tuple[Path, Path, list[list[str]]]) -> None:
    _, out, told = two
    done = records(out)
    assert [record.day for record in done] == DAYS[:2]
    assert told == [[record.key for record in done]] * 2
    for name in done[0].versions:
        assert [version for version, *_ in snapshots(out, name)] == [1, 2, 3]
    assert [EmbeddingStore(store_folder(out)).series(name).tags() for name in PLAIN] == [{"prod": 3}] * 2


def test_two_ranks_embed_and_average_as_one(
    two: tuple[Path, Path, list[list[str]]], tmp_path: Path, environment: Environment
) -> None:
    """The same model on one rank: the first snapshot, which no training separates, and who is in the others."""
    data, out, _ = two
    _, alone = start_run(tmp_path, DAYS[:2], environment)
    refresh_upstream(CONFIG, data, alone, every=True)
    for name in PLAIN:
        one, both = (EmbeddingStore(store_folder(folder)).series(name) for folder in (alone, out))
        for version in (1, 2, 3):
            tables = [series.version(version).load() for series in (one, both)]
            assert torch.equal(tables[0].ids(), tables[1].ids())
        ids = tables[0].ids()
        first = [series.version(1).load().lookup(ids) for series in (one, both)]
        torch.testing.assert_close(first[0], first[1])
    models = [
        load_towers((folder / records(folder)[-1].checkpoint).parent, CONFIG.upstream, SCHEMA, environment)[0]
        for folder in (alone, out)
    ]
    for owner in ("user", "item"):
        owned = [model.vocabulary.tables[owner].get_extra_state() for model in models]
        assert torch.equal(*owned)
        assert owned[0].count_nonzero() >= 9
