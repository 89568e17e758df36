"""`bundle.json`: what a bundle is of, written last; and the check that its files are those that were written.

bundle.json       this
ranker.pt2        the program, `torch.export`; see recsys/bundle/program.py
ranker-aot.pt2    the same, compiled by AOTInductor; on request
schema.toml       the columns it reads, with the sizes of their tables
vocabulary.npz    which id owns which row, int16 [rows] for each owner
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recsys.atomic import write_json
from recsys.evaluate.recalibration import Recalibration
from recsys.sealed import damage, read_manifest

MANIFEST, PROGRAM, COMPILED = "bundle.json", "ranker.pt2", "ranker-aot.pt2"
SCHEMA, VOCABULARY = "schema.toml", "vocabulary.npz"
FORMAT = 1
PROBABILITY, EXPECTED_VALUE = "probability", "expected value"
"""What an output of a ranker may be."""


class BundleError(ValueError):
    """A bundle that is not whole, or cannot be used with the store as it is; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """The version of a series that a bundle reads."""

    series: str
    owner: str
    """`user` or `item`."""
    version: int
    as_of: int
    """Of the version, ms."""
    space: str
    dim: int
    activity: int = 0
    """Version of the companion series that says how the vectors are fed; 0: there is none."""
    history: tuple[int, ...] = ()
    """The versions that are read too, pooled, oldest first; the last is `version`."""


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """One output of the ranker."""

    name: str
    label: str
    """The label it has learned."""
    kind: str = PROBABILITY
    """Of what is said: `probability` that the label is 1, or `expected value`, of a label that is a value."""
    scale: float
    """Its recalibration, fitted on the validation rows: sigmoid(scale * logit + bias), of a value exp(...)."""
    bias: float
    kept_negatives: float
    """Of the label: the probabilities are of all rows, of whose negatives so many were in the files."""
    validation: Mapping[str, float]
    """`ne`, `auc`, `calibration`, `rows` and `positives` of those rows, as they are in the files; of an expected value
    `deviance` and `concordance` instead of the first two, see `recsys.evaluate.values`."""

    @property
    def is_value(self) -> bool:
        """Whether it says an expected value."""
        return self.kind == EXPECTED_VALUE

    @property
    def output(self) -> str:
        """What it is called beside the other outputs; a value, so that nobody takes it for a probability."""
        return f"{self.name}_expected" if self.is_value else self.name

    @property
    def recalibration(self) -> Recalibration:
        """What the program applies to the logits."""
        return Recalibration(self.scale, self.bias + math.log(self.kept_negatives))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a bundle that is not in its other files."""

    name: str
    arm: str
    """Of the ranker's config."""
    history: int
    """Versions of each series that the ranker reads, pooled; 0: the newest alone."""
    tasks: tuple[TaskFacts, ...]
    pins: tuple[Pin, ...]
    """In the order in which the ranker reads the vectors."""
    store: str
    """Path or URL of the store that the pins are of."""
    training: Mapping[str, Any]
    """`rows`, `passes`, `ranks`, `seed` and the `code` version."""
    compiled: str
    """The kind of device that COMPILED is for; empty: there is none."""
    created: str
    """UTC, ISO 8601."""
    files: Mapping[str, Mapping[str, Any]]
    """Name -> `bytes` and `sha256`."""
    history_pooling: str = "mean"
    """How."""
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Raises BundleError: there is none, or it is damaged or of another format."""
        document = read_manifest(folder, MANIFEST, FORMAT, what="bundle", command="recsys bundle", error=BundleError)
        try:
            tasks = tuple(TaskFacts(**task) for task in document["tasks"])
            return cls(**{**document, "tasks": tasks, "pins": tuple(_pin(pin) for pin in document["pins"])})
        except (KeyError, TypeError) as damaged:
            what = f"{folder / MANIFEST} is damaged ({type(damaged).__name__}: {damaged})"
            raise BundleError(f"{what}: make the bundle anew, or copy it again") from None


def _pin(document: Mapping[str, Any]) -> Pin:
    return Pin(**{**document, "history": tuple(document["history"])})


def verify(folder: Path, manifest: Manifest) -> None:
    """Raises BundleError, naming the file, unless every file is as it was written."""
    if found := damage(folder, manifest.files):
        raise BundleError(f"{found}: copy the bundle again, or make it anew")


@contextmanager
def verified(folder: Path, manifest: Manifest) -> Iterator[None]:
    """Files that are read inside are those that were written, also where others take their place meanwhile.

    Raises:
        BundleError: see `verify`; or, at the end, a file is another one than the one that was verified.
    """
    before = _marks(folder, manifest)
    verify(folder, manifest)
    yield
    if _marks(folder, manifest) != before:
        raise BundleError(f"the files of {folder} were replaced while they were read: load it again")


def _marks(folder: Path, manifest: Manifest) -> list[tuple[int, ...]]:
    """Which files they are, and when they were last changed; a missing one is left to `verify`."""
    found = [(folder / name).stat() for name in manifest.files if (folder / name).is_file()]
    return [(x.st_dev, x.st_ino, x.st_size, x.st_mtime_ns, x.st_ctime_ns) for x in found]
