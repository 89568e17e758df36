"""What the training of an upstream leaves, of whatever kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.train.run import TrainResult


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training that has come to its end."""

    result: TrainResult
    batch_size: int
    """Rows a rank and step."""
    most: int
    """Passes it could have made."""
    held_out: int
    """Events that chose the pass; 0: none did."""
    collisions: dict[str, float]
    """Owner, or node type -> share of its ids in these events that have no row of their own."""
    score: str = "ne"
    """What chose the pass: `ne`, or of links 1 - `mrr`."""

    def record(self) -> dict[str, Any]:
        """For result.json, see `recsys.study.report`."""
        scores = [score for (score,) in self.result.scores]
        said = {"validation_ne": scores, "validation_mrr": [1 - score for score in scores]}
        said["validation_mrr" if self.score == "ne" else "validation_ne"] = []
        return {
            "steps": self.result.steps,
            "input_wait_fraction": self.result.input_wait_fraction,
            "batch_size": self.batch_size,
            "collisions": self.collisions,
            "passes": {
                "done": len(scores) or self.most,
                "most": self.most,
                "best": int(np.argmin(scores)) + 1 if scores else self.most,
                "held_out": self.held_out,
                **said,
            },
        }
