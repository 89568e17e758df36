from dataclasses import replace
from pathlib import Path

import pytest

from recsys.downstream.ranking import all_rankers
from recsys.study.ablation import ablation_arms, ablation_jobs, fullest_job
from recsys.study.arms import arm_title, series_read
from tests.recsys.downstream.example import NONE, RANKERS
from tests.recsys.refresh.example import CONFIG


@pytest.mark.parametrize(
    ("upstreams", "arms"),
    [
        (["ctr"], {"none": (), "ctr_user": ("user_ctr",), "ctr_user_item": ("user_ctr", "item_ctr")}),
        (
            ["ctr", "cvr"],
            {
                "none": (),
                "ctr_user": ("user_ctr",),
                "ctr_user_item": ("user_ctr", "item_ctr"),
                "cvr_user_item": ("user_cvr", "item_cvr"),
                "ctr_cvr_user_item": ("user_ctr", "item_ctr", "user_cvr", "item_cvr"),
            },
        ),
        (
            ["a", "b", "c"],
            {
                "none": (),
                "a_user": ("user_a",),
                "a_user_item": ("user_a", "item_a"),
                "b_user_item": ("user_b", "item_b"),
                "a_b_user_item": ("user_a", "item_a", "user_b", "item_b"),
                "c_user_item": ("user_c", "item_c"),
                "a_b_c_user_item": ("user_a", "item_a", "user_b", "item_b", "user_c", "item_c"),
            },
        ),
    ],
)
def test_ablation_arms(upstreams: list[str], arms: dict[str, tuple[str, ...]]) -> None:
    found = {arm.name: arm.series for arm in ablation_arms(upstreams)}
    assert found == arms
    assert list(found) == list(arms)  # in the order of the table


def test_all_rankers_have_files_of_their_own() -> None:
    fragment = replace(RANKERS, tasks={"ctr": "click"}, seeds=(7,))
    jobs = ablation_jobs(replace(CONFIG, rankers=RANKERS, fragment=fragment))
    rankers = [ranker for job in jobs.values() for ranker in all_rankers(job)]
    assert len(rankers) == 3 * 2 + 3
    files = [ranker.path(Path(), task) for job in jobs.values() for ranker in all_rankers(job) for task in job.tasks]
    assert len(set(files)) == len(files) == 2 * 3 * 2 + 3
    assert rankers[0] == NONE
    assert {ranker.seed for ranker in rankers if ranker.job == "fragment"} == {7}


def test_every_seed_of_a_study_reads_its_training_of_the_upstreams() -> None:
    study = replace(CONFIG, rankers=replace(RANKERS, seeds=(4, 5, 6)), upstream_seeds=(0, 8))
    published = {f"{owner}_{upstream.name}" for upstream in study.trainings() for owner in ("user", "item")}
    (job,) = ablation_jobs(study).values()
    read = {(ranker.arm, ranker.seed): ranker.series for ranker in all_rankers(job)}
    assert {name for names in read.values() for name in names} == published
    assert [read["ctr_user", seed] for seed in (4, 5, 6)] == [("user_ctr",), ("user_ctr_s8",), ("user_ctr",)]
    assert read["ctr_user_item", 5] == ("user_ctr_s8", "item_ctr_s8")
    assert read["none", 5] == ()


def test_one_more_arm_reads_cross_representations() -> None:
    *others, last = ablation_arms(["ctr", "cvr"], cross=True)
    assert others == list(ablation_arms(["ctr", "cvr"]))
    assert (last.name, last.series[:4]) == (f"{others[-1].name}_cross", others[-1].series)
    assert last.series[4:] == ("user_ctr_cross", "item_ctr_cross", "user_cvr_cross", "item_cvr_cross")
    assert arm_title(last.name, ["ctr", "cvr"]) == "CTR + CVR, user + item + cross"
    assert arm_title("ctr_user_item_cross", ["ctr"]) == "CTR user + item + cross"
    assert series_read(last.name, ["ctr", "cvr"])[4:] == list(last.series[4:])
    assert sorted(series_read(last.name, ["ctr", "cvr"])) == sorted(last.series)
    study = replace(CONFIG, refresh=replace(CONFIG.refresh, cross=True), rankers=replace(RANKERS, seeds=(4, 5)))
    (job,) = ablation_jobs(replace(study, upstream_seeds=(0, 8))).values()
    read = {(ranker.arm, ranker.seed): ranker.series for ranker in all_rankers(job)}
    assert read["ctr_user_item_cross", 5] == ("user_ctr_s8", "item_ctr_s8", "user_ctr_s8_cross", "item_ctr_s8_cross")
    assert "ctr_user_item_cross" not in {arm.name for arm in ablation_jobs(CONFIG)["tasks"].arms}
    assert [arm.name for arm in fullest_job(study).arms] == ["ctr_user_item_cross"]
