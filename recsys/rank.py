"""A second ranker on the same vectors: rankers of any config read a store that is there, and are reported on."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedding_store import EmbeddingStore
from recsys.atomic import write_json
from recsys.config import ArmConfig, ConfigError, RankerConfig, to_dict
from recsys.data.files import find_files
from recsys.downstream.ranking import screen_splits, stage_name
from recsys.downstream.validation import REFERENCE
from recsys.folders import make_out
from recsys.identity import identify_files
from recsys.pipeline import job, ranks_here
from recsys.stages import forget, unaccounted
from recsys.study.collect import collect_rankers
from recsys.study.report import build_report, write_report
from recsys.study.terminal import print_report


def run_rankers(config: RankerConfig, data: Path, store: str, out: Path, ranks: int) -> None:
    """Train rankers on the vectors of a store, beside rankers without, and report what the vectors were worth.

    The report goes to `out/downstream/<name>`. Rankers that are there, of the same config, files and versions, stay.

    Args:
        config: the rankers; an arm that reads nothing is added.
        data: folder of the events.
        store: path or URL.
        out: folder of a run, this one's or another's.
        ranks: processes of the job.

    Raises:
        ConfigError: `out` cannot be written into, or holds rankers of this name that a study trained.
        DataError, SchemaError: the data do not fit; before anything is trained.
        JobError: the job failed.
    """
    arms = (ArmConfig(name=REFERENCE), *(arm for arm in config.arms if arm.name != REFERENCE))
    config, opened = replace(config, arms=arms), EmbeddingStore(store)
    make_out(out)
    screen_splits(config, data, out)
    _claim(config, data, opened, out)
    job("downstream", stage_name(config), config, data, out, ranks_here(ranks), "--store", store)
    overhead, start, folder = unaccounted(out), time.monotonic(), out / "downstream" / config.name
    report = build_report(collect_rankers(config, data, out, opened))
    report["seconds"] |= {"start": overhead, "report": time.monotonic() - start}
    write_report(report, folder)
    print_report(report)
    print(f"report: {folder / 'report.html'} (figures: {folder / 'report.json'})")


def _claim(config: RankerConfig, data: Path, store: EmbeddingStore, out: Path) -> None:
    """Leave the rankers of this name that are there if they are of the same, else forget them."""
    folder = out / "downstream" / config.name
    path, of = folder / "of.json", _identity(config, data, store)
    known = json.loads(path.read_text()) if path.is_file() else None
    if folder.is_dir() and not isinstance(known, dict):
        raise ConfigError(
            f"{folder} holds the rankers of a study: give the config another name than {config.name!r}, or choose "
            "another --out"
        )
    if known == of:
        return
    forget(out, stage_name(config))
    shutil.rmtree(folder, ignore_errors=True)
    write_json(path, of)


def _identity(config: RankerConfig, data: Path, store: EmbeddingStore) -> dict[str, Any]:
    """What decides how rankers come out: their config, the rows, and what there is to be read."""
    files = find_files(data, (config.schema, *config.train, *config.validation, *config.test))
    read = dict.fromkeys(name for seed in config.seeds for arm in config.arms for name in config.series(arm, seed))
    versions = {
        name: [f"{snapshot.version} as of {snapshot.as_of}" for snapshot in store.series(name).history(refused=False)]
        for name in read
    }
    return {"config": to_dict(config), "files": identify_files(files, data), "versions": versions}
