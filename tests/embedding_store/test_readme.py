"""The store's README: its code runs as it stands, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import embedding_store
from embedding_store import Accesses, EmbeddingStore, EntityEmbedding, LiveTable, ShardedLiveTable, load_sharded
from embedding_store.cli.main import main

FOLDER = Path(embedding_store.__file__).parent
README = (FOLDER / "README.md").read_text()


@pytest.fixture
def group() -> Iterator[None]:
    """Of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_code_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: None):
    monkeypatch.chdir(tmp_path)
    names = {
        "EmbeddingStore": EmbeddingStore,
        "EntityEmbedding": EntityEmbedding,
        "LiveTable": LiveTable,
        "ShardedLiveTable": ShardedLiveTable,
        "load_sharded": load_sharded,
        "torch": torch,
        "ids": torch.arange(100) * 7 - 300,
        "vectors": torch.randn(100, 64, generator=torch.Generator().manual_seed(0)),
        "event_times": torch.full((100,), 1_700_000_000_000) + torch.arange(100) * 3_600_000,
    }
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        exec(block, names)
    assert names["found"].tolist() == [True] * 95 + [False] * 5
    assert names["count"].tolist() == [2, 4]
    assert (names["change"].added, names["change"].removed, names["change"].moved) == (0, 5, 10)
    assert names["versions"].tolist() == [0] + [1] * 24 + [3] * 75  # version 3, the compaction, is of version 2's time
    assert names["past"].shape == (100, 8, 64)
    # The correction, version 3, takes version 2's place; it lacks the last 5 ids.
    assert names["mask"].sum(1).tolist() == [1] * 24 + [2] * 71 + [1] * 5
    assert [snapshot.version for snapshot in names["doomed"]] == [2]  # 1 is tagged, 3 the newest
    series, ids = names["series"], names["ids"]
    for name, snapshot in [("vectors_there", series.latest()), ("vectors_now", series.tagged("prod"))]:
        assert torch.equal(names[name], snapshot.load().lookup(ids)[0])
    assert torch.equal(Accesses.load("hot.parquet").ids.sort().values, names["ids"][:95])
    assert names["features"].shape == (100, 33)
    assert torch.equal(names["items"].latest().load().lookup(names["ids"])[0], names["vectors"])


def test_every_command_exists(capsys: pytest.CaptureFixture[str]):
    commands = set(re.findall(r"embedding-store (\w+)", README))
    assert len(commands) == 14
    for command in commands:
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_the_files_it_names_are_there():
    named = set(re.findall(r"`([A-Za-z_/]+\.md)`", README))
    assert named == {"FORMAT.md"}
    assert (FOLDER / "FORMAT.md").is_file()
