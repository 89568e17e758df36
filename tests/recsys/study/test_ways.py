from dataclasses import replace
from pathlib import Path

import pytest

from recsys.config import ArmConfig, StudyConfig
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.downstream.ranking import all_rankers
from recsys.study.ablation import ranker_job
from recsys.study.ways import study_arms, study_job
from tests.recsys.refresh.daily_example import DAYS, daily_study, write_day
from tests.recsys.refresh.example import write_log

CONFIG = daily_study(study=True)


def arms_of(study: StudyConfig) -> dict[str, tuple[str, ...]]:
    return {arm.name: arm.series for arm in study_arms(study)}


def test_arms_in_the_order_of_the_table() -> None:
    arms = arms_of(CONFIG)
    assert list(arms) == ["none", "latest", "ma_0.2", "ma_0.5", "ma_0.8", "average", "once"]
    assert arms["none"] == ()
    assert arms["latest"] == ("user_ctr.latest", "item_ctr.latest")
    assert arms["ma_0.8"] == arms["once"] == ("user_ctr", "item_ctr"), "the upstream's own way is the plain pair"
    rankers = all_rankers(ranker_job("daily", CONFIG.rankers, study_arms(CONFIG)))
    assert {ranker.arm for ranker in rankers if ranker.once} == {"once"}
    assert len({ranker.path(Path(), "ctr") for ranker in rankers}) == 7 * 3


def test_arms_without_a_study_and_of_another_way() -> None:
    plain = daily_study()
    assert arms_of(plain) == {"none": (), "ma_0.8": ("user_ctr", "item_ctr"), "once": ("user_ctr", "item_ctr")}
    other = daily_study(study=True, weight=0.5)
    assert arms_of(other)["ma_0.5"] == arms_of(other)["once"] == ("user_ctr", "item_ctr")
    assert arms_of(other)["ma_0.8"] == ("user_ctr.ma_0.8", "item_ctr.ma_0.8")


def test_cross_representations_are_read_beside_the_upstreams_own_way() -> None:
    arms = arms_of(daily_study(study=True, cross=True))
    assert list(arms)[-3:] == ["average", "cross", "once"]
    assert arms["cross"] == ("user_ctr", "item_ctr", "user_ctr_cross", "item_ctr_cross")


def test_two_upstreams() -> None:
    (first,) = CONFIG.upstreams
    arms = arms_of(replace(CONFIG, upstreams=(first, replace(first, name="cvr"))))
    assert arms["latest"] == ("user_ctr.latest", "item_ctr.latest", "user_cvr.latest", "item_cvr.latest")
    assert arms["once"] == ("user_ctr", "item_ctr", "user_cvr", "item_cvr")


def test_splits_are_the_days_files(tmp_path: Path) -> None:
    data = write_log(tmp_path / "data [1]")
    for day in (DAYS[0], DAYS[2], DAYS[3], DAYS[4]):
        write_day(data, day)
    job = study_job(CONFIG, data)
    names = {part: [path.parent.name for path in find_files(data, getattr(job, part))] for part in _PARTS}
    assert names == {"train": [DAYS[0]], "validation": [DAYS[2]], "test": [DAYS[3], DAYS[4]]}
    assert job.publish_delay_ms == CONFIG.rankers.publish_delay_ms
    assert job.arms[0] == ArmConfig(name="none")
    with pytest.raises(DataError, match=r"no day of spans.train = 1970-01-02 to 1970-01-03 is there"):
        study_job(CONFIG, write_log(tmp_path / "empty"))


_PARTS = ("train", "validation", "test")
