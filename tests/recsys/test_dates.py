from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from recsys.dates import DAY_MS, dates, day_number, day_span, number_of

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
