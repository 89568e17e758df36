"""What a search varies: one small table, and what `--set` makes of it.

Nothing here imports torch: a mistake is told at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from recsys.config import ConfigError, StudyConfig, override, parse_assignment, to_dict


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; every factor of ten is searched as much as the next."""

    low: float
    high: float


Choices = tuple[int | float | str | bool, ...]
Space = Mapping[str, Choices | Range]
"""Path in the study's config -> the values to try; `*` stands for every upstream, all of which get the same value."""

SPACE: Space = {
    "upstreams.*.model.token_dim": (16, 32),
    "upstreams.*.model.tokens": (4, 8),
    "upstreams.*.model.out_tokens": (2, 4),
    "upstreams.*.model.out_dim": (16, 32),
    "upstreams.*.model.dropout": (0.0, 0.1, 0.2),
    "upstreams.*.model.id_dropout": (0.0, 0.1, 0.3),
    "upstreams.*.loss.contrastive_weight": Range(0.01, 1.0),
    "upstreams.*.loss.temperature": Range(0.03, 0.3),
    "upstreams.*.loss.uniform_negatives": (0, 512),
    "upstreams.*.training.epochs": (1, 2, 4),
    "upstreams.*.training.batch_size": (256, 512, 1024),
    "upstreams.*.training.sparse_lr": Range(0.01, 0.2),
    "upstreams.*.training.dense_lr": Range(3e-4, 3e-3),
    "rankers.network.embedding_dim": (8, 16),
    "rankers.network.dropout": (0.0, 0.1, 0.2),
    "rankers.network.id_dropout": (0.0, 0.1),
    "rankers.network.vector_dropout": (0.0, 0.3, 0.6),
    "rankers.network.entity_dropout": (0.0, 0.1, 0.3),
    "rankers.training.sparse_lr": Range(0.003, 0.2),
    "rankers.training.dense_lr": Range(3e-4, 3e-3),
    "rankers.training.batch_size": (512, 1024, 2048),
}
"""The rankers' epochs are not among them: the validation files choose those anyway."""


def split_assignments(assignments: tuple[str, ...]) -> tuple[dict[str, Choices | Range], tuple[str, ...]]:
    """Divide `path=value` assignments into those that narrow the search and those that change the config.

    A path of SPACE, written as there, with a list to choose from or { low = .., high = .. } narrows it. Any other
    assignment is of the config; a setting that it names, of whichever upstream, is not searched.

    Returns:
        path of SPACE -> what is left of it, without the settings that are not searched; and the rest.

    Raises:
        ConfigError: no assignment, an empty list, a range that is none, or nothing is left to search.
    """
    space, rest = dict(SPACE), list[str]()
    for assignment in assignments:
        path, value = parse_assignment(assignment)
        if path in SPACE and isinstance(value, (list, dict)):
            space[path] = _narrowed(path, value)
            continue
        rest.append(assignment)
        space = {searched: values for searched, values in space.items() if not fnmatchcase(path, searched)}
    if not any(isinstance(values, Range) or len(values) > 1 for values in space.values()):
        raise ConfigError(f"--set leaves nothing to search: leave it out for one of {', '.join(SPACE)}")
    return space, tuple(rest)


def around(study: StudyConfig, space: Space) -> dict[str, Choices | Range]:
    """The space with the study's own values in it, except where `--set` has narrowed it.

    Raises:
        ConfigError: a value that does not fit the config.
    """
    own = own_settings(study, space)
    whole = {
        path: _including(values, own.get(path)) if SPACE[path] == values else values for path, values in space.items()
    }
    for path, values in whole.items():
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            apply(study, {path: value})
    return whole


def own_settings(study: StudyConfig, space: Space) -> dict[str, Any]:
    """The study's own values of these settings, without those that its upstreams do not agree on."""
    document, found = to_dict(study), dict[str, Any]()
    for path in space:
        first, _, last = path.partition(".*")
        values = [_value(node, last or path) for node in (document[first] if last else [document])]
        if all(value == values[0] for value in values):
            found[path] = values[0]
    return found


def contains(values: Choices | Range, value: Any) -> bool:
    """Whether the value is one of these."""
    return values.low <= value <= values.high if isinstance(values, Range) else value in values


def apply(study: StudyConfig, settings: Mapping[str, Any]) -> StudyConfig:
    """The study with these settings. Raises ConfigError where they do not fit."""
    names = [upstream.name for upstream in study.upstreams]
    assignments = (
        f"{path.replace('*', name)}={json.dumps(value)}"
        for path, value in settings.items()
        for name in (names if "*" in path else names[:1])
    )
    return override(study, tuple(assignments))


def _value(node: Any, path: str) -> Any:
    for key in filter(None, path.split(".")):
        node = node[key]
    return node


def _narrowed(path: str, value: list[Any] | dict[str, Any]) -> Choices | Range:
    if isinstance(value, list):
        if not value:
            raise ConfigError(f"--set {path} is an empty list: give the values to choose from")
        return tuple(value)
    ends = [end for end in (value.get("low"), value.get("high")) if isinstance(end, (int, float))]
    if len(value) != 2 or len(ends) != 2 or not 0 < ends[0] < ends[1]:
        raise ConfigError(f"--set {path} is {value}: write {{ low = 0.01, high = 0.1 }}, with 0 < low < high")
    return Range(float(ends[0]), float(ends[1]))


def _including(values: Choices | Range, own: Any) -> Choices | Range:
    if own is None or contains(values, own):
        return values
    if isinstance(values, Range):  # 0 turns a loss off, and is no number of a logarithmic range
        return Range(min(values.low, own), max(values.high, own)) if own > 0 else values
    return tuple(sorted((*values, own)))
