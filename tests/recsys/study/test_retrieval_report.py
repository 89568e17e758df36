import io
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from rich.console import Console

from recsys.evaluate.wording import MISSING
from recsys.study import retrieval_report
from recsys.study.daily_page import render_daily
from recsys.study.daily_report import build_daily
from recsys.study.report import build_report
from recsys.study.report_page import render_page
from recsys.study.retrieval_report import NO_IALS, retrieval_document, retrieval_table
from recsys.study.segments import BUCKETS_DEFINITION
from recsys.study.terminal import print_daily, print_report
from tests.recsys.study.daily_example import example_daily
from tests.recsys.study.example import RECALLS, example_results, example_retrieval
from tests.recsys.study.test_report import leaves


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    keys = re.findall(r"^    (\S+)  +\S", retrieval_report.__doc__ or "", re.MULTILINE)
    patterns = [re.compile(re.escape(re.sub(r"<\w+>", "\0", key)).replace("\0", r"[\w-]+")) for key in keys]
    found = leaves(retrieval_document(example_retrieval()))
    assert len(patterns) > 10
    for leaf in found:
        assert any(pattern.fullmatch(leaf) for pattern in patterns), f"{leaf} is not documented"
    for pattern in patterns:
        assert any(pattern.fullmatch(leaf) for leaf in found), f"{pattern.pattern} is documented but not written"


@pytest.mark.parametrize(
    ("build", "render", "write"),
    [
        (lambda: build_report(example_results(), samples=5), render_page, print_report),
        (lambda: build_daily(example_daily(), samples=5), render_daily, print_daily),
    ],
    ids=["once", "daily"],
)
def test_both_reports_show_every_row(
    build: Callable[[], dict[str, Any]],
    render: Callable[[dict[str, Any]], str],
    write: Callable[[dict[str, Any], Console], None],
) -> None:
    document, stream = build(), io.StringIO()
    write(document, Console(file=stream, width=120))
    table = retrieval_table(document)
    assert table is not None
    assert list(table.titles) == list(RECALLS)
    assert table.cutoffs == ("10", "50")
    for shown in (unescape(render(document)), stream.getvalue()):
        assert all(title in shown for title in table.titles.values())
        assert all(f"{value:.4f}" in shown for recall in RECALLS.values() for value in recall.values())
        assert NO_IALS not in shown
        ndcg, coverage = document["retrieval"]["rows"]["chosen"]["ndcg@50"], "5 %"  # 0.61 and 0.23 of the recall
        assert f"{ndcg:.4f}" in shown
        assert ndcg == pytest.approx(0.61 * 0.2113)
    assert coverage in stream.getvalue()


def test_the_page_has_every_figure_of_every_row() -> None:
    """At phone width: a table that scrolls within itself (see tests/recsys/evaluate/page.py for its looks)."""
    document = build_report(example_results(), samples=5)
    page = unescape(render_page(document))
    (table,) = (
        part for part in re.findall(r'<div class="scroll"><table>.*?</table>', page, re.S) if "hit rate" in part
    )
    cells = re.findall(r"<td>([^<]*)</td>", table)
    rows = document["retrieval"]["rows"]
    assert len(cells) == len(rows) * 12
    for row, figures in rows.items():
        for key, value in figures.items():
            if not key.startswith("recall@"):
                assert (MISSING if value is None else f"{value:.4f}") in cells, (row, key)
    assert rows["chosen"]["recall_middle@10"] is None
    assert "1,800 are of the middle (900 items of training)" in re.sub(r"\s+", " ", page)
    assert BUCKETS_DEFINITION in page


def test_what_was_not_run_is_not_shown() -> None:
    document = build_daily(example_daily(retrieval=None), samples=5)
    assert retrieval_table(document) is None
    assert "Recall at k" not in render_daily(document | {"days": {}})
    document = build_daily(example_daily(retrieval=replace(example_retrieval(), ials="")), samples=5)
    assert "needs pip install" in render_daily(document | {"days": {}})  # whose plots would take longest
