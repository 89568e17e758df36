"""Which checkpoints of a folder can be gone on from: whole ones, whose files are what was written.

A checkpoint is a folder `step-00000500`, written under another name and renamed when every rank is done, so one that
can be seen is whole. Then `last-good`, a file beside them, names it. Its `progress.json`, which is written last, has
size and CRC of every file, and of itself.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from recsys.atomic import write_text
from recsys.train.distributed import Environment, broadcast, control_group
from recsys.train.passes import best_passes

PROGRESS = "progress.json"
LAST_GOOD = "last-good"
"""Name of the file that has the name of the newest checkpoint."""
REPLACED = ".old.tmp"
"""Ends the name of a checkpoint in whose place another of the same step is being put."""
_NAME = re.compile(r"step-(\d{8,})")
_BYTES = 1 << 22

Sums = dict[str, tuple[int, int]]
"""Name of a file -> its bytes and their CRC-32."""


class CheckpointError(ValueError):
    """A checkpoint that is not there, is damaged, or belongs to another model."""


def is_checkpoint(path: Path) -> bool:
    """Whether this is the name of a checkpoint."""
    return _NAME.fullmatch(path.name) is not None


def at(folder: Path, step: int) -> Path:
    """The checkpoint in `folder` after so many steps."""
    return folder / f"step-{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """Those in `folder` that were written to their end, oldest first. Whether a file was damaged since is not seen."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, the one that `last-good` names if it is there; None: there is none."""
    found = checkpoints(folder)
    return _named(folder, found) if found else None


def mark(path: Path) -> None:
    """Let `last-good` name this checkpoint."""
    write_text(path.parent / LAST_GOOD, f"{path.name}\n")


def sums(files: Iterable[Path]) -> Sums:
    """Bytes and CRC-32 of each file."""
    return {path.name: _sum(path) for path in files}


def sealed(progress: Mapping[str, Any], files: Sums) -> str:
    """The text of `progress.json`: this, the files' sums, and a sum of it all."""
    whole = {**progress, "files": files}
    return json.dumps({**whole, "crc": zlib.crc32(json.dumps(whole).encode())})


def read_progress(path: Path) -> dict[str, Any]:
    """What `save` was given as progress, `step`, `world_size`, `id` and `files`. Raises CheckpointError if damaged."""
    try:
        found = json.loads((path / PROGRESS).read_text())
        crc = found.pop("crc", None)  # checkpoints of earlier versions have none
        if crc not in (None, zlib.crc32(json.dumps(found).encode())):
            raise ValueError("its content is not what was written")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path / PROGRESS}: {error}; delete the folder to go on from the one before it"
        ) from error
    return dict(found)


def damage(path: Path, *, part: int = 0, parts: int = 1) -> str:
    """What is wrong with a checkpoint's files, naming the first; empty: nothing is.

    Args:
        path: of the checkpoint.
        part: of `parts` that share the reading, this one's number.
        parts: how many there are.
    """
    try:
        files = read_progress(path).get("files", {})
    except CheckpointError as error:
        return str(error).partition("; delete")[0]
    for name, (size, crc) in sorted(files.items())[part::parts]:
        file = path / name
        try:
            found = file.stat().st_size
            if found != size:
                return f"{file} has {found} bytes, {size} were written"
            if _sum(file)[1] != crc:
                return f"{file}: its content is not what was written"
        except OSError as error:
            return f"{file}: {error.strerror}"
    return ""


def check(path: Path, *, together: bool) -> None:
    """Raise CheckpointError if a checkpoint is damaged, see `damage`; `together`: each rank reads its share."""
    if found := _damage_on_all_ranks(path) if together else damage(path):
        raise CheckpointError(f"{found}; delete {path} to go on from the one before it")


def newest_good(folder: Path, environment: Environment) -> Path | None:
    """The newest checkpoint that a training can go on from; None: there is none at all. No other may be written now.

    One that is damaged, or for which that of a pass that was the best so far is, is left out with a warning that names
    the file. A collective: each rank reads its share of the files.

    Raises:
        CheckpointError: all are damaged.
    """
    paths: list[Path] = broadcast(_newest_first(folder) if environment.is_main else None, environment)
    for path in paths:
        found = _trouble(path)
        if not found:
            return path
        if environment.is_main:
            print(f"warning: {path.name} is left out, it is damaged: {found}", file=sys.stderr, flush=True)
    if paths:
        raise CheckpointError(f"{folder}: every checkpoint is damaged; mend the disk, or delete it to train anew")
    return None


def _newest_first(folder: Path) -> list[Path]:
    """What to go on from, in the order of preference: what `last-good` names, then what is older."""
    for replaced in folder.glob(f"*{REPLACED}"):
        final = replaced.with_name(replaced.name.removesuffix(REPLACED))
        if not final.exists():  # killed before the new one had its name
            replaced.rename(final)
    found = checkpoints(folder)
    return found[found.index(_named(folder, found)) :: -1] if found else []


def _named(folder: Path, found: list[Path]) -> Path:
    try:
        named = folder / (folder / LAST_GOOD).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return found[-1]
    return named if named in found else found[-1]


def needed(path: Path) -> set[Path]:
    """The checkpoints of the best passes so far, to which a training that goes on from this one may come back; none of
    one that is damaged."""
    try:
        progress = read_progress(path)
    except CheckpointError:
        return set()
    return {at(path.parent, progress["ends"][number]) for number in best_passes(progress.get("scores", []))}


def _trouble(path: Path) -> str:
    """What is wrong with a checkpoint or with those of the passes that it may come back to; the same on every rank."""
    found = _damage_on_all_ranks(path)
    if found:
        return found
    for kept in sorted(needed(path)):
        if kept != path and (found := _damage_on_all_ranks(kept)):
            return f"it needs {kept.name}, the best pass so far: {found}"
    return ""


def _damage_on_all_ranks(path: Path) -> str:
    found = [""] * dist.get_world_size()
    mine = damage(path, part=dist.get_rank(), parts=len(found))
    dist.all_gather_object(found, mine, group=control_group())  # shares differ in bytes
    return next(filter(None, found), "")


def _sum(path: Path) -> tuple[int, int]:
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(_BYTES):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return size, crc
