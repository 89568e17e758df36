from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablations
from benchmarks.ablations import AS_IS, VARIATIONS, Options, Variation, assignments, main, take_over
from recsys.downstream.predictions import write_predictions
from recsys.downstream.ranking import all_rankers
from recsys.study.ablation import ablation_jobs
from tests.recsys.study.example import example_validation


def test_a_change_is_made_to_every_upstream() -> None:
    by_name = {variation.name: variation for variation in VARIATIONS}
    options = Options(recipe="demo", set_=("ranks=1",))
    assert assignments(options, by_name["no logQ correction"]) == [
        "ranks=1",
        "upstreams.ctr.loss.log_q=false",
        "upstreams.cvr.loss.log_q=false",
    ]
    assert assignments(options, by_name["stored as int4"]) == ["ranks=1", "refresh.dtype=int4"]
    assert assignments(options, by_name[AS_IS]) == ["ranks=1"]


def test_every_change_fits_the_config(tmp_path: Path) -> None:
    options = Options(recipe="demo", out=tmp_path)
    studies = [ablations.study_of(options, variation) for variation in VARIATIONS]
    assert len({repr(study) for study in studies}) == len(VARIATIONS)


@pytest.mark.parametrize(
    ("part", "kept"),
    [
        ("upstreams", {"data", "none"}),
        ("refresh", {"data", "none", "upstream", "upstream stage"}),
        ("rankers", {"data", "upstream", "upstream stage", "store", "refresh stage"}),
    ],
)
def test_what_a_variation_does_not_change_is_taken_over(tmp_path: Path, part: str, kept: set[str]) -> None:
    files = {
        "data": "data/a.parquet",
        "none": "downstream/tasks/ctr/none-0.npz",
        "reader": "downstream/tasks/ctr/ctr_user_item-0.npz",
        "upstream": "upstream/ctr/result.json",
        "upstream stage": "stages/upstream-ctr.0.json",
        "store": "store/series/x",
        "refresh stage": "stages/refresh-ctr.0.json",
        "rankers' stage": "stages/downstream-tasks.0.json",
    }
    for path in files.values():
        (tmp_path / "base" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "base" / path).write_text("x")
    take_over(tmp_path / "base", tmp_path / "out", Variation("x", part))
    assert {name for name, path in files.items() if (tmp_path / "out" / path).exists()} == kept


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="variations names 'x'; use 'as it is', 'no contrastive loss'"):
        Options(variations=("x",))
    with pytest.raises(ValueError, match="recipe is 'y'; use "):
        Options(recipe="y")


@pytest.mark.long
def test_the_table_compares_rankers_on_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped goes on; what reads more of the truth is above."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    labels, users = (rng.random(4000) < 1 / (1 + np.exp(-truth))).astype(np.float32), rng.integers(0, 800, 4000)
    options = Options(recipe="demo", out=tmp_path, variations=("stored as int4",))
    ran: list[str] = []

    def run(options: Options, variation: Variation, out: Path) -> None:
        ran.append(variation.name)
        share = {AS_IS: 1.0, "stored as int4": 0.6}[variation.name]
        for ranker in all_rankers(ablation_jobs(ablations.study_of(options, variation))["tasks"]):
            known = share if ranker.series else 0.3
            for task in ("ctr", "cvr"):
                logits = (known * truth + np.random.default_rng(1 + ranker.seed).normal(size=4000)).astype(np.float32)
                there = np.ones(4000, bool)
                example_validation(0.9).save(ranker.validation(out, task))
                write_predictions(
                    ranker.path(out, task),
                    logits=logits,
                    labels=labels,
                    mask=there,
                    users=users,
                    validation_losses=labels,
                )
        (out / "report.json").write_text("{}")

    monkeypatch.setattr(ablations, "run", run)
    main(options)
    main(options)
    assert ran == [AS_IS, "stored as int4"]
    page = (tmp_path / "ablations.md").read_text()
    assert "SYNTHETIC data." in page
    first, second = (line for line in page.splitlines() if "| CTR |" in line)
    assert first.startswith("| as it is | CTR | 0.")
    assert first.endswith("|  |")
    assert second.split("|")[-2].strip().startswith("-"), "it knows less than the run as it is"
    assert second.split("|")[-3].strip().startswith("+"), "and more than no vectors"
