"""Which settings a trial gets: Optuna's tree-structured Parzen estimator, given the trials before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recsys.config import ConfigError
from recsys.tune.space import Choices, Range, Space, contains

try:
    import optuna
except ImportError as error:
    raise ConfigError(f"{error}: `recsys tune` needs Optuna; pip install 'recsys-derm[tune]'") from None


def propose(space: Space, trials: Sequence[tuple[Mapping[str, Any], float]], number: int) -> dict[str, Any]:
    """Settings for a trial: at random for the first ten, then where the trials before it found good ones.

    Args:
        space: path -> values to try.
        trials: settings and score, less is better, of those that have one; one outside of the space says nothing.
        number: of the trial; it seeds the draw, so that a search that was stopped goes on as if it had not been.

    Returns:
        path -> value; numbers of a range with three digits.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {path: _distribution(values) for path, values in space.items()}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=number))
    within = (
        trial for trial in trials if all(path in trial[0] and contains(space[path], trial[0][path]) for path in space)
    )
    for settings, score in within:
        study.add_trial(optuna.trial.create_trial(params=dict(settings), distributions=distributions, value=score))
    drawn = study.ask(distributions).params
    return {path: _rounded(space[path], value) for path, value in drawn.items()}


def _distribution(values: Choices | Range) -> optuna.distributions.BaseDistribution:
    if isinstance(values, Range):
        return optuna.distributions.FloatDistribution(values.low, values.high, log=True)
    return optuna.distributions.CategoricalDistribution(values)


def _rounded(values: Choices | Range, value: Any) -> Any:
    return min(max(float(f"{value:.3g}"), values.low), values.high) if isinstance(values, Range) else value
