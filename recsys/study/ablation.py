"""The ablation: every ranker with and without the store's vectors, on the same rows from the same start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from recsys.config import CROSS, ArmConfig, RankerConfig, RankerSettings, StudyConfig
from recsys.downstream.validation import REFERENCE
from recsys.refresh.arms import cross_series


def ablation_arms(upstreams: Sequence[str], *, cross: bool = False) -> tuple[ArmConfig, ...]:
    """The arms in the order of the paper's table (arXiv 2509.04337), and each upstream's vectors alone; `cross`: and
    one that reads, beside all that the last of them does, the upstreams' cross representations.

    For the upstreams ctr and cvr: none, ctr_user, ctr_user_item, cvr_user_item, ctr_cvr_user_item,
    ctr_cvr_user_item_cross.
    """
    first = upstreams[0]
    arms = [ArmConfig(name="none"), ArmConfig(name=f"{first}_user", series=(f"user_{first}",)), _reading([first])]
    for count in range(2, len(upstreams) + 1):
        arms += [_reading(upstreams[count - 1 : count]), _reading(upstreams[:count])]
    if cross:
        added = tuple(name for upstream in upstreams for name in cross_series(upstream))
        arms.append(ArmConfig(name=f"{arms[-1].name}{CROSS}", series=arms[-1].series + added))
    return tuple(arms)


def _reading(upstreams: Sequence[str]) -> ArmConfig:
    """The arm that reads the user and item vectors of these."""
    series = tuple(f"{owner}_{name}" for name in upstreams for owner in ("user", "item"))
    return ArmConfig(name="_".join((*upstreams, "user_item")), series=series)


def fullest_job(study: StudyConfig) -> RankerConfig:
    """The rankers of the last arm alone, which reads all that the upstreams publish."""
    arms = _arms(study)
    return ranker_job("tasks", study.rankers, arms[-1:], study.seed_suffixes())


def ablation_jobs(study: StudyConfig) -> dict[str, RankerConfig]:
    """Population -> the job of its rankers: `tasks`, and `fragment` if the study has one."""
    arms = _arms(study)
    populations = {"tasks": study.rankers} | ({"fragment": study.fragment} if study.fragment else {})
    suffixes = study.seed_suffixes()
    return {name: ranker_job(name, settings, arms, suffixes) for name, settings in populations.items()}


def _arms(study: StudyConfig) -> tuple[ArmConfig, ...]:
    if study.arms:
        return ArmConfig(name=REFERENCE), *(arm for arm in study.arms if arm.name != REFERENCE)
    return ablation_arms([upstream.name for upstream in study.upstreams], cross=study.refresh.cross)


def ranker_job(
    name: str, settings: RankerSettings, arms: tuple[ArmConfig, ...], seed_suffixes: tuple[str, ...] = ("",)
) -> RankerConfig:
    """Rankers as a job of their own."""
    values = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    return RankerConfig(name=name, arms=arms, seed_suffixes=seed_suffixes, **values)
