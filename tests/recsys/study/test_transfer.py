"""The document and the sentences; what an upstream itself predicts is tested in tests/recsys/test_own_data.py."""

from __future__ import annotations

import pytest

from recsys.study.transfer import transfer_document, transfer_lines

TASKS = {
    "ctr": {"none": {"ne": 0.90}, "ctr_user": {"ne": 0.80}, "ctr_user_item": {"ne": 0.87}},
    "cvr": {"none": {"ne": 0.95}, "ctr_user_item": {"ne": 0.96}},
}


def test_the_ratio_is_of_the_gains_over_the_ranker_without_vectors() -> None:
    found = transfer_document({"ctr": {"ctr": 0.84, "cvr": 0.90}, "cvr": {"cvr": 0.85}, "deaf": {}}, TASKS)
    assert {task: list(upstreams) for task, upstreams in found.items()} == {"ctr": ["ctr"], "cvr": ["ctr", "cvr"]}
    entry = found["ctr"]["ctr"]
    assert (entry["ne"], entry["gain"], entry["ranker_gain"], entry["ratio"]) == pytest.approx((0.84, 0.06, 0.03, 0.5))
    assert found["cvr"]["ctr"]["ratio"] == pytest.approx(-0.2)
    assert found["cvr"]["cvr"]["gain"] == pytest.approx(0.10)
    assert found["cvr"]["cvr"]["ranker_gain"] is found["cvr"]["cvr"]["ratio"] is None, "no arm reads it alone"
    (ctr, cvr) = transfer_lines({"transfer": found})
    assert ctr == (
        "CTR: upstream ctr by itself comes to NE 0.8400 on the test events, the ranker to 0.9000 without its vectors "
        "and 0.8700 with them: transfer ratio 0.50."
    )
    assert cvr.endswith("transfer ratio -0.20.")


@pytest.mark.parametrize("own", [0.90, 0.93])
def test_an_upstream_that_gains_nothing_has_no_ratio(own: float) -> None:
    found = transfer_document({"ctr": {"ctr": own}}, TASKS)
    assert found["ctr"]["ctr"]["ratio"] is None
    (line,) = transfer_lines({"transfer": found})
    assert line.endswith("no better than the ranker without vectors (0.9000): no transfer ratio.")


def test_nothing_measured() -> None:
    assert transfer_document({}, TASKS) == transfer_document({"ctr": {}}, TASKS) == {}
    assert transfer_lines({}) == []
