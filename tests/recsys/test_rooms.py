"""The rooms of `recsys` import one way, and know of the embedding store what it gives to all."""

from __future__ import annotations

from pathlib import Path

import pytest

import embedding_store
import recsys.cli
from tests.imports import arrows, circle, imported, loaded

PACKAGE = Path(recsys.cli.__file__).parent
STORE = "embedding_store"


def test_rooms_import_one_way() -> None:
    rooms = arrows(PACKAGE, "recsys")
    assert {"config", "data", "models", "train", "refresh", "monitor", "downstream", "evaluate", "study"} <= set(rooms)
    assert not circle(rooms)


@pytest.mark.parametrize("line", ["from recsys import b", "def f():\n    from recsys.b import c"])
def test_a_circle_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text(line)
    (tmp_path / "b.py").write_text("if TYPE_CHECKING:\n    import recsys.a.x")
    assert set(circle(arrows(tmp_path, "recsys"))) == {"a", "b"}


def test_ranks_load_what_draws_and_logs_when_they_do() -> None:
    """Most ranks never do: half a second each at their start."""
    found = loaded(PACKAGE, "recsys", *(f"recsys.{job}" for job in ("upstream", "refresh.cycle", "downstream.ranking")))
    assert {"recsys.train.log", "recsys.monitor.quality_page", "torchrec.distributed.DistributedModelParallel"} <= found
    assert not {name for name in found if {"matplotlib", "tensorboard", "sklearn"} & {*name.split(".")}}


def test_evaluate_knows_no_run() -> None:
    assert arrows(PACKAGE, "recsys")["evaluate"] == set()


def test_the_store_is_used_by_what_it_gives_to_all() -> None:
    used = {(file.name, name) for file in PACKAGE.rglob("*.py") for name in imported(file) if name.startswith(STORE)}
    assert len(used) > 10
    assert {name for _, name in used} <= {f"{STORE}.{name}" for name in embedding_store.__all__}, used


def test_only_recipes_know_the_synthetic_market() -> None:
    market = ("recsys.data.market", "recsys.data.synthetic")
    knowing = {file for file in PACKAGE.rglob("*.py") if any(name.startswith(market) for name in imported(file))}
    assert {file.relative_to(PACKAGE).parts[:-1] for file in knowing} == {("recipes",), ("data",)}
    assert {file.name for file in knowing if file.parent.name == "data"} == {"synthetic.py"}
