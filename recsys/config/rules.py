"""What every config class checks its values with."""

from __future__ import annotations

import re
from collections.abc import Sequence

from recsys.mistakes import MistakesError, tell

SEEDS = 2**32
"""Seeds are below this."""

NO_STUDY = "this is a study's, for `recsys run` and `recsys daily`; a job takes its own: see OUT/configs of a run"
"""What to say of a study's config that is given to a job."""


class ConfigError(MistakesError):
    """Config values that cannot work; each sentence names the field, the value and the remedy."""


def require(condition: bool, message: str) -> None:
    """Tell a ConfigError with this message (see `recsys.mistakes`) unless the condition holds."""
    if not condition:
        tell(ConfigError(message))


def check_seeds(seeds: Sequence[int], name: str) -> None:
    """Raise ConfigError unless the seeds are different ones that every generator takes."""
    distinct = len(set(seeds)) == len(seeds) and all(0 <= seed < SEEDS for seed in seeds)
    require(distinct, f"{name} is {seeds}; use different ones, 0 <= seed < 2^32")


VALUE_LOSSES = ("poisson", "weighted")
"""What `value_loss` may be."""


def check_value_loss(value_loss: str) -> None:
    """Tell a ConfigError unless there is such a loss."""
    require(value_loss in VALUE_LOSSES, f"value_loss is {value_loss!r}; use one of {', '.join(VALUE_LOSSES)}")


INTERACTIONS = ("masknet", "dcnv2", "transformer", "mlp")
"""Modules of a DHEN layer."""


def check_layers(layers: Sequence[Sequence[str]]) -> None:
    """Raise ConfigError unless these are layers of a DHEN."""
    require(len(layers) > 0, "layers is empty; give at least one DHEN layer, say [['masknet', 'mlp']]")
    for modules in layers:
        require(len(modules) > 0, "layers has a layer without modules; give each at least one")
        for module in modules:
            require(module in INTERACTIONS, f"layers names {module!r}; use one of {', '.join(INTERACTIONS)}")


def is_word(text: str) -> bool:
    """Whether the text can be part of a file's and of a series' name."""
    return re.fullmatch(r"[A-Za-z0-9_]{1,100}", text) is not None
