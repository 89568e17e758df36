from datetime import date, datetime, time, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from recsys.dates import DAY_MS, HOUR_MS, dates, day_number, day_span, is_date, number_of

OFFSETS = st.sampled_from([-14.0, -3.5, 0.0, 5.5, 8.0, 14.0])


@given(st.dates(date(1900, 1, 1), date(2200, 1, 1)), OFFSETS, st.integers(0, DAY_MS - 1))
def test_a_time_is_of_the_day_whose_span_it_lies_in(day: date, offset: float, since: int) -> None:
    start, end = day_span(day.isoformat(), offset)
    assert end - start == DAY_MS
    assert number_of(start + since, offset) == day_number(day.isoformat())
    assert number_of(end, offset) == day_number(day.isoformat()) + 1


@given(st.dates(date(1900, 1, 1), date(2200, 1, 1)), st.integers(-2, 40))
def test_dates_are_all_days_of_a_span(day: date, more: int) -> None:
    found = list(dates(day.isoformat(), (day + timedelta(more)).isoformat()))
    assert [day_number(each) - day_number(day.isoformat()) for each in found] == list(range(more + 1))


@given(st.dates(date(1900, 1, 1), date(2200, 1, 1)), st.sampled_from([1, 2, 3, 6, 12, 24, 48, 168]), st.integers(1, 9))
def test_days_of_any_length_follow_one_another(first: date, hours: int, count: int) -> None:
    begin = first.isoformat() + ("T00" if hours < 24 else "")
    end = datetime.combine(first, time()) + timedelta(hours=hours * (count - 1))
    found = list(dates(begin, end.strftime("%Y-%m-%dT%H") if hours < 24 else end.date().isoformat(), hours))
    assert len(found) == count
    assert found == sorted(found)
    assert all(is_date(day, hours) for day in found)
    spans = [day_span(day, hours=hours) for day in found]
    assert all(end - start == hours * HOUR_MS for start, end in spans)
    assert all(before[1] == after[0] for before, after in pairwise(spans))


def test_what_a_day_can_be_called() -> None:
    assert is_date("2024-01-31T18", 6)
    for wrong in ("2024-01-31T17", "2024-01-31", "2024-01-31T24", "2024-01-31T6", "2024-1-31T06", "T06", "2024-01-31T"):
        assert not is_date(wrong, 6), wrong
    assert not is_date("2024-01-31T00", 24)
    assert not is_date("2024-01-31T00", 168)
