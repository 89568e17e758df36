from dataclasses import replace

import numpy as np

from recsys.dates import DAY_MS
from recsys.study.moments import Log, Moment, moments

NOTHING = Log(*(np.zeros(0, kind) for kind in (np.int64, np.int64, np.int64, bool)))


def log(*events: tuple[int, int, float, bool]) -> Log:
    """Of (user, item, day, positive)."""
    users, items, days, positive = zip(*events, strict=True)
    times = (np.array(days) * DAY_MS).astype(np.int64)
    return Log(np.array(users), np.array(items), times, np.array(positive))


ASKED = log(
    (1, 7, 10.2, True),
    (1, 8, 10.3, False),
    (2, 9, 10.9, True),
    (1, 7, 11.5, True),  # again: it counts where it was first
    (1, 9, 11.6, True),
    (3, 8, 13.0, True),
)
BEFORE = log((5, 7, 3.0, True), (1, 9, 9.9, False))


def wanted(moment: Moment) -> list[tuple[int, int]]:
    return list(zip(moment.users[moment.rows].tolist(), moment.items.tolist(), strict=True))


def test_requests_of_a_day_know_what_was_before_it() -> None:
    found = list(moments(ASKED, BEFORE, timed=True, origin=0))
    assert [moment.time for moment in found] == [10 * DAY_MS, 11 * DAY_MS, 13 * DAY_MS]
    assert [wanted(moment) for moment in found] == [[(1, 7), (2, 9)], [(1, 9)], [(3, 8)]]
    assert [len(moment.known) for moment in found] == [2, 5, 7]
    assert all((moment.known.times < moment.time).all() for moment in found)
    assert found[1].within(24).times.tolist() == [int(day * DAY_MS) for day in (10.2, 10.3, 10.9)]
    assert len(found[1].within(0)) == 5


def test_without_days_they_are_counted_from_the_first_request() -> None:
    found = list(moments(ASKED, BEFORE, timed=True))
    assert [moment.time for moment in found] == [int(day * DAY_MS) for day in (10.2, 11.2, 12.2)]


def test_what_the_upstream_may_have_seen_is_not_asked_for() -> None:
    (first, *_) = moments(ASKED, BEFORE, timed=True, origin=0, since=int(10.5 * DAY_MS))
    assert first.time == int(10.5 * DAY_MS)  # and not when the day began
    assert wanted(first) == [(2, 9)]


def test_without_times_one_moment_knows_what_is_given() -> None:
    untimed = [replace(part, times=np.zeros_like(part.times)) for part in (ASKED, BEFORE)]
    (moment,) = moments(*untimed, timed=False)
    assert wanted(moment) == [(1, 7), (1, 9), (2, 9), (3, 8)]
    assert len(moment.known) == len(moment.within(1)) == len(BEFORE)


def test_what_was_shown_is_neither_asked_for_nor_offered() -> None:
    """1 was shown 9 before, and 8 on the first day; 3 was shown 8 in the source."""
    found = list(moments(ASKED, BEFORE, timed=True, origin=0, shown=log((3, 8, 1.0, False))))
    assert [wanted(moment) for moment in found] == [[(1, 7), (2, 9)]]
    rows, items = found[0].without
    assert sorted(zip(rows.tolist(), items.tolist(), strict=True)) == [(0, 9)]
    late = log((1, 6, 11.7, True))
    found = list(moments(Log.join([ASKED, late]), BEFORE, timed=True, origin=0, shown=NOTHING, since=11 * DAY_MS))
    assert [wanted(moment) for moment in found] == [[(1, 6)], [(3, 8)]]
    assert [set(moment.without[1].tolist()) for moment in found] == [{7, 8, 9}, set()]


def test_a_sample_is_of_users_days_with_all_that_these_want() -> None:
    asked = log(*((user, item, 10.0 + day, True) for user in range(50) for day in range(3) for item in (day, 7 + day)))
    some = list(moments(asked, NOTHING, timed=True, origin=10 * DAY_MS, most=40))
    assert sum(len(moment.users) for moment in some) == 40
    assert len(some) == 3
    for day, moment in enumerate(some):
        assert sorted(wanted(moment)) == sorted(
            (user, item) for user in moment.users.tolist() for item in (day, 7 + day)
        )
        assert len(moment.known.users) == 100 * day
    assert len({tuple(moment.users.tolist()) for moment in some}) == 3


def test_a_sample_of_the_users_leaves_what_is_known() -> None:
    asked = log(*((user, 1, 10.0 + user / 1000, True) for user in range(100)))
    (all_of_them,) = moments(asked, NOTHING, timed=True, origin=int(9.99 * DAY_MS))
    (some,) = moments(asked, NOTHING, timed=True, origin=int(9.99 * DAY_MS), most=10)
    (again,) = moments(asked, NOTHING, timed=True, origin=int(9.99 * DAY_MS), most=10)
    assert len(all_of_them.users) == 100
    assert len(some.users) == 10
    assert some.users.tolist() == again.users.tolist()
    assert list(moments(asked.only(~asked.positive), NOTHING, timed=True)) == []
