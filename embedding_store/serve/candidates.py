"""Which versions of the followed series are to be served next."""

from __future__ import annotations

from collections.abc import Mapping

from embedding_store.errors import SchemaChangedError, VersionNotFoundError, VersionRetractedError
from embedding_store.read.snapshot import Snapshot
from embedding_store.read.table import Table
from embedding_store.series import Series


def candidate_of(
    series: Mapping[str, Series], tag: str | None, present: int
) -> tuple[dict[str, Snapshot] | None, str | None]:
    """The snapshots to serve instead of version `present` (0: of nothing), or None and how the series disagree.

    Raises what Series.tagged, history and version raise.
    """
    if tag is not None:
        snapshots = {name: one.tagged(tag) for name, one in series.items()}
        if disagreement := _disagreement(snapshots):
            return None, f"tag {tag!r}: {disagreement}"
        version = next(iter(snapshots.values())).version
        return (None if version == present else snapshots), None
    versions = {name: one.versions(refused=False) for name, one in series.items()}
    newest = {name: found[-1] if found else 0 for name, found in versions.items()}
    waiting = None
    if len(set(newest.values())) > 1:
        waiting = "the newest versions are " + ", ".join(f"{name} {version}" for name, version in newest.items())
    elif newest and not any(newest.values()):
        waiting = f"{', '.join(series)} has no snapshot yet"
    common = set.intersection(*(set(found) for found in versions.values()))
    back = present not in common and any(_withdrawn(one, present) for one in series.values())
    for version in sorted((v for v in common if v > present or back), reverse=True):
        snapshots = {name: one.version(version) for name, one in series.items()}
        disagreement = _disagreement(snapshots)
        if disagreement is None:
            return snapshots, None
        waiting = waiting or disagreement
    return None, waiting


def _withdrawn(series: Series, version: int) -> bool:
    """Whether a version that was served was retracted or refused; one that was expired may be served on."""
    try:
        return version > 0 and series.version(version).refused is not None
    except VersionNotFoundError as error:
        return isinstance(error, VersionRetractedError)


def _disagreement(snapshots: Mapping[str, Snapshot]) -> str | None:
    """How these snapshots are not of one generation, for a message; None if they are."""
    for what in ("version", "as_of", "space"):
        values = {name: getattr(snapshot, what) for name, snapshot in snapshots.items()}
        if len(set(values.values())) > 1:
            of = "" if what == "version" else f" of version {next(iter(snapshots.values())).version}"
            return f"{what}{of} is " + ", ".join(f"{value!r} of {name}" for name, value in values.items())
    return None


def refuse_another_schema(snapshots: Mapping[str, Snapshot], tables: Mapping[str, Table]) -> None:
    for name, snapshot in snapshots.items():
        present = tables[name].manifest
        if (snapshot.dim, snapshot.dtype) != (present.dim, present.dtype):
            raise SchemaChangedError(
                f"version {snapshot.version} of {name} has dim {snapshot.dim}, dtype {snapshot.dtype}; version "
                f"{present.version}, which is served, has {present.dim}, {present.dtype}: make a new LiveTable for it"
            )
