import pytest

from recsys.monitor.worth import DAYS, ranking


def test_days_are_weighted_by_how_well_they_are_known() -> None:
    known = ranking([(None, None), (0.7, [0.5, 0.9]), (0.5, [0.49, 0.51])])
    assert known is not None
    assert known.auc == pytest.approx((0.7 / 400 + 0.5) / (1 / 400 + 1))
    assert known.days == 2
    assert known.low < 0.5 < known.high
    assert known.is_chance
    assert str(known) == "ranks the last 2 days' traffic at a ROC-AUC of 0.500 (0.491 to 0.510), no better than chance"


def test_a_week_tells_what_a_quiet_day_does_not() -> None:
    day = (0.54, (0.48, 0.6))
    alone, week, longer = (ranking([day] * days) for days in (1, DAYS, 3 * DAYS))
    assert alone is not None
    assert week is not None
    assert (alone.is_chance, week.is_chance) == (True, False)
    assert longer == week
    assert ranking([(0.6, (0.6, 0.6)), (None, (None, None))]) is None, "of a single user, and of nobody"
