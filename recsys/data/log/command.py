"""`recsys prepare log`: the config, the work, and what is printed of it."""

from __future__ import annotations

from pathlib import Path

from recsys.config import ConfigError, LogConfig
from recsys.data.log.prepare import prepare_log
from recsys.data.log.summary import summary


def prepare_command(config: Path | None, source: Path | None, out: Path) -> None:
    """Prepare a log, and print what became of it.

    Args:
        config: LOG.toml.
        source: folder that its paths are relative to; None: its own.
        out: folder to write to.

    Raises:
        ConfigError: there is no config, or a mistake in it.
        DataError: a mistake in the log.
    """
    if config is None:
        raise ConfigError("LOG.toml is missing: recsys prepare log LOG.toml --out DIR; README.md has an example")
    settings = LogConfig.load(config)
    for line in summary(settings, prepare_log(settings, source or config.parent, out), out):
        print(line)
