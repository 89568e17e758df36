from dataclasses import replace
from pathlib import Path

import pytest

from recsys.config import RefreshConfig
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.study.ways import study_arms, study_downstream, study_rankers
from tests.recsys.refresh.daily_example import DAYS, daily_config, write_day
from tests.recsys.refresh.example import write_log

CONFIG = daily_config(study=True)


def test_arms_in_the_order_of_the_table() -> None:
    arms = study_arms(CONFIG)
    assert list(arms) == ["none", "latest", "ma_0.2", "ma_0.5", "ma_0.8", "average", "once"]
    assert arms["none"] == ()
    assert arms["latest"] == ("user_ctr.latest", "item_ctr.latest")
    assert arms["ma_0.8"] == arms["once"] == ("user_ctr", "item_ctr"), "the upstream's own way is the plain pair"
    assert {ranker.arm for ranker in study_rankers(CONFIG) if ranker.once} == {"once"}
    assert len({ranker.path(Path()) for ranker in study_rankers(CONFIG)}) == 7 * 3


def test_arms_without_a_study_and_of_another_way() -> None:
    plain = daily_config(study=False)
    assert study_arms(plain) == {"none": (), "ma_0.8": ("user_ctr", "item_ctr"), "once": ("user_ctr", "item_ctr")}
    other = daily_config(study=True, weight=0.5)
    assert study_arms(other)["ma_0.5"] == study_arms(other)["once"] == ("user_ctr", "item_ctr")
    assert study_arms(other)["ma_0.8"] == ("user_ctr.ma_0.8", "item_ctr.ma_0.8")


def test_two_upstreams_of_different_ways() -> None:
    (first,) = CONFIG.upstreams
    second = replace(first, name="cvr", refresh=RefreshConfig(aggregation="latest"))
    arms = study_arms(replace(CONFIG, upstreams=(first, second)))
    assert arms["latest"] == ("user_ctr.latest", "item_ctr.latest", "user_cvr", "item_cvr")
    assert arms["once"] == ("user_ctr", "item_ctr", "user_cvr", "item_cvr")


def test_splits_are_the_days_files(tmp_path: Path) -> None:
    data = write_log(tmp_path / "data [1]")
    for day in (DAYS[0], DAYS[2], DAYS[3], DAYS[4]):
        write_day(data, day)
    downstream = study_downstream(CONFIG, data)
    names = {part: [path.parent.name for path in find_files(data, getattr(downstream, part))] for part in _PARTS}
    assert names == {"train": [DAYS[0]], "validation": [DAYS[2]], "test": [DAYS[3], DAYS[4]]}
    assert downstream.publish_delay_ms == CONFIG.days().publish_delay_ms
    with pytest.raises(DataError, match=r"no day of daily.train = 1970-01-02 to 1970-01-03 is there"):
        study_downstream(CONFIG, write_log(tmp_path / "empty"))


_PARTS = ("train", "validation", "test")
