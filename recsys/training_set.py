"""The rows that an upstream is trained on, and what a training of them is known by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recsys.config import KINDS, TrainConfig, UpstreamConfig
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.schema import Schema
from recsys.data.survey import Surveyed
from recsys.identity import effective, flatten, identify_files

_WITHOUT_EFFECT = ("schema.withdrawn", "schema.max_bad_rows")
"""What may change while a model is trained."""
_OF_BUNDLES = ".kept_negatives"
"""What of the schema's labels is for rankers that are deployed alone."""


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Events, and what else a training reads beside them."""

    files: Sequence[Path]
    """The events, in time order."""
    schema: Schema
    """From `recsys.source.upstream_schema`."""
    data: Path
    """Folder that the files lie below. It may be moved: what they hold and their names in it must stay."""
    items: Sequence[Path] = ()
    """Items' own rows, of which, and of the events, the last ones are what `loss.uniform_negatives` draws from."""
    withdrawn: Collection[int] = ()
    """Items that are not drawn."""
    skip: Quarantine = NOTHING
    """Rows that are left out."""
    as_of: int | None = None
    """Time up to which the outcomes of labels are known, ms; None: the newest event's."""
    surveyed: Surveyed | None = None
    """What is known of the files' rows that are not skipped, as of that time; None: they are read."""

    def identity(self, upstream: UpstreamConfig, training: TrainConfig) -> dict[str, dict[str, str]]:
        """What a training is of: a checkpoint of something else is refused.

        Args:
            upstream: its model and loss.
            training: the run, with the batch size that was asked for: another number of ranks may need another.
        """
        skipped = self.skip.rows.items()
        return {
            "files": identify_files([*self.files, *self.items], self.data),
            "config": self._config(upstream, training),
            "quarantine": {path.relative_to(self.data).as_posix(): f"rows {x.tolist()}" for path, x in skipped},
        }

    def _config(self, upstream: UpstreamConfig, training: TrainConfig) -> dict[str, str]:
        """Everything that a model depends on but its events and the number of ranks, as key -> value."""
        settings = {"loss": asdict(upstream.loss), "training": asdict(training), "held_out": upstream.held_out}
        config = flatten({"schema": asdict(self.schema), KINDS[upstream.kind]: asdict(upstream.network), **settings})
        kept = {key: value for key, value in config.items() if not key.endswith(_OF_BUNDLES)}
        return effective(kept, _WITHOUT_EFFECT)
