"""What every config class checks its values with."""

from __future__ import annotations

import re

SEEDS = 2**32
"""Seeds are below this."""

NO_STUDY = "this is a study's, for `recsys run` and `recsys daily`; a job takes its own: see OUT/configs of a run"
"""What to say of a study's config that is given to a job."""


class ConfigError(ValueError):
    """A config value that cannot work; the message names the field, the value and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def is_word(text: str) -> bool:
    """Whether the text can be part of a file's and of a series' name."""
    return re.fullmatch(r"[A-Za-z0-9_]{1,100}", text) is not None
