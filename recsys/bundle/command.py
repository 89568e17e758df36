"""What `recsys bundle`, `score` and `repin` do beside the work itself: see that it can be done, and tell of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from embedding_store import EmbeddingStore
from recsys.atomic import write_json
from recsys.bundle.bundle import load_bundle
from recsys.bundle.manifest import Manifest
from recsys.bundle.repin import repin
from recsys.bundle.score import Scored, score_files
from recsys.bundle.start import Start
from recsys.bundle.write import stage_name
from recsys.config import ConfigError, RankerConfig, to_dict
from recsys.data.files import find_files
from recsys.evaluate.measures import measures
from recsys.folders import bundle_folder, make_out
from recsys.identity import identify_files
from recsys.jobs import run_job
from recsys.pipeline import ranks_here, start_job


def make_bundle(
    config: RankerConfig,
    arm: str,
    data: Path,
    store: str,
    out: Path,
    ranks: int,
    *,
    compiled: bool,
    start: Path | None = None,
) -> Manifest:
    """Train the ranker of one arm on some ranks of this machine, unless it is there, and tell of it.

    Raises:
        ConfigError: no such arm; `out` cannot be written into, or holds another bundle.
        JobError: the training failed.
    """
    config.arm(arm)
    make_out(out)
    path = out / "of.json"
    of = _identity(config, arm, data, store) | ({} if start is None else Start(start).identity())
    if path.is_file() and json.loads(path.read_text()) != of:
        raise ConfigError(f"{out} is of another ranker, other files or another store: choose another --out")
    write_json(path, of)
    folder = bundle_folder(out)
    if folder.is_dir():
        print(f"{folder}: made before")
    else:
        options = ("--arm", arm, "--store", store, *(["--compiled"] if compiled else []))
        options += () if start is None else ("--start", str(start))
        start_job("ranker", stage_name(config, arm), config, data, out, ranks_here(ranks), *options)
    manifest = Manifest.load(folder)
    _tell_bundle(folder, manifest)
    return manifest


def _identity(config: RankerConfig, arm: str, data: Path, store: str) -> dict[str, Any]:
    """What a bundle is of, but for the versions that are the newest when it is made."""
    files = find_files(data, (config.schema, *config.train, *config.validation))
    place = EmbeddingStore(store).location
    return json.loads(
        json.dumps({"config": to_dict(config), "arm": arm, "store": place, "files": identify_files(files, data)})
    )


def _tell_bundle(folder: Path, manifest: Manifest) -> None:
    for task in manifest.tasks:
        measured, judged = task.validation, measures(is_value=task.is_value)
        figures = ", ".join(f"{name} {measured[name]:.4f}" for name in (judged.loss_name, judged.ranking_name))
        of = f"{task.label}, expected value {task.output}" if task.is_value else task.label
        print(f"task {task.name} (label {of}): validation {figures}, {measured['rows']:,.0f} rows")
    for number, earlier in enumerate(manifest.training["progressive"], start=2):
        said = ", ".join(_said(label, found) for label, found in earlier["tasks"].items())
        print(f"before training {number}, of its {earlier['rows']:,} new rows: {said}")
    for pin in manifest.pins:
        print(f"reads {pin.series} version {pin.version} (space {pin.space}, as of {pin.as_of} ms)")
    size = sum(int(file["bytes"]) for file in manifest.files.values())
    print(f"bundle: {folder} ({size / 2**20:,.1f} MiB; recsys score {folder} --data DIR --out DIR)")


def _said(label: str, figures: Mapping[str, float | None]) -> str:
    name = measures(is_value="deviance" in figures).loss_name
    value = figures[name]
    return f"{label} {name} {'undefined' if value is None else f'{value:.4f}'}"


def score(bundle: Path, data: Path, files: str, out: Path, store: str, ranks: int, device: str) -> None:
    """Score files on some ranks of this machine; under torch elastic, this rank's share.

    Raises:
        ConfigError: `out` cannot be written into, or holds other scores.
        BundleError, DataError: as their rooms say.
        JobError: a rank failed.
    """
    make_out(out)
    paths = find_files(data, (files,))
    if ranks > 1 and "RANK" not in os.environ:
        arguments = ("score", str(bundle), "--data", str(data), "--files", files, "--out", str(out))
        options = (*(["--store", store] if store else []), "--device", device)
        start = time.monotonic()
        run_job("score", (*arguments, *options), ranks, out / "logs")
        rows = sum(pq.read_metadata(path).num_rows for path in out.rglob("*.parquet"))
        print(f"{rows:,} rows in {out}: {time.monotonic() - start:.1f} s, with the start of {ranks} ranks", flush=True)
        return
    loaded = load_bundle(bundle, _of_rank(device), store=store or None)
    _tell_scored(score_files(loaded, bundle, paths, data, out), out)


def _of_rank(device: str) -> str:
    """Where "cuda" is asked for, this rank's GPU: ranks of one machine take its GPUs in turn."""
    count = torch.cuda.device_count() if device == "cuda" else 0
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % count}" if count else device


def _tell_scored(scored: Scored, out: Path) -> None:
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    speed = scored.rows / scored.seconds if scored.seconds else 0.0
    print(f"{rank}{scored.rows:,} rows scored in {scored.seconds:.1f} s, {speed:,.0f} rows/s: {out}", flush=True)
    if scored.early:
        print(
            f"{rank}{scored.early:,} of them are of before the pinned vectors' time: these know what came later, so "
            "no figure measured on those rows is fair",
            flush=True,
        )


def move(bundle: Path, store: str, max_drift: float) -> None:
    """Repin a bundle and tell what changed. Raises what `repin` does."""
    moves = repin(bundle, store=store or None, max_drift=max_drift)
    for step in moves:
        drift = "" if step.drift is None else f", 1 - median cosine {step.drift:.4f}"
        print(f"{step.after.series}: version {step.before.version} to {step.after.version}{drift}")
    if not moves:
        print(f"{bundle} reads the newest versions already")
