import re
from pathlib import Path
from typing import Any

import pytest

from embedding_store import EmbeddingStore
from recsys.config import GateConfig
from recsys.monitor.export import read_records
from recsys.monitor.gates import check
from recsys.monitor.quality_page import ageing_changes, headline, notes_of, render_quality, write_pages
from tests.recsys.evaluate.page import Page
from tests.recsys.monitor.publishing import day_name, noisy, replay, write_record

PLOTS = 11


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Five days, the fourth missing; the third is refused."""
    root = tmp_path_factory.mktemp("pages")
    store = EmbeddingStore(root / "store")
    for day in (0, 1, 2, 4, 5):
        quality = replay(store, 1, noisy, first=day)
        gates = check(quality, GateConfig(max_drift=0.1)) if day == 2 else []
        write_record(root / "ctr", day, quality, gates=gates, **({"gap": [day_name(3)]} if day == 4 else {}))
    return read_records(root / "ctr")


def test_page_is_self_contained_and_complete(records: list[dict[str, Any]]) -> None:
    text = render_quality(records, "user_ctr")
    page = Page(text)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert len(page.addresses) == PLOTS + 1  # and the ageing curve
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    flat = " ".join(page.text.split())
    newest = records[-1]["quality"]
    for wanted in (
        "Version 5 passed the gates (4 of 5 publishes passed).",
        f"{100 * newest['pair']['skew']['loss']:.2f}\N{NO-BREAK SPACE}%",
        f"{newest['series']['user_ctr']['drift']['day_cosine']['0.5']:.3f}",
        f"{newest['pair']['skew']['auc'][1][2]:.4f}",
        f"{newest['pair']['skew']['recall'][2][0]:.4f}",
        f"refused: {records[2]['gates'][0]}",
        f"days missing before it: {day_name(3)}",
        "0 (learned from them)",
        "200 entities",
        "space ctr-1",
    ):
        assert " ".join(wanted.split()) in flat, wanted
    assert "item_ctr · quality" in Page(render_quality(records, "item_ctr")).text


def test_first_day_alone_shows_dashes_not_zeros(records: list[dict[str, Any]]) -> None:
    page = Page(render_quality(records[:1], "user_ctr"))
    row = next(line for line in page.text.split("\n\n") if "2024-02-26" in line and "3,000" in line)
    assert row.count("–") >= 1  # noqa: RUF001
    assert not re.search(r"(?<![\d.])0\.0+\s*%", page.text)
    assert "Version 1 passed the gates (1 of 1 publishes passed)." in page.text
    assert not any("Cosine" in alt or "by age" in alt for alt in page.alternatives)
    assert not any(
        "by age" in alt for alt in Page(render_quality(records[:2], "user_ctr")).alternatives
    )  # one age only


def test_pages_are_written_per_series_and_only_for_what_was_published(
    records: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_pages(tmp_path, "ctr")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "days").mkdir()
    write_record(tmp_path, 0, replay(EmbeddingStore(tmp_path / "store"), 1))
    write_pages(tmp_path, "ctr")
    write_pages(tmp_path, "ctr")
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*_ctr/*"))
    assert written == ["item_ctr/quality.html", "user_ctr/quality.html"]


def test_a_refused_newest_publish_says_so_first(records: list[dict[str, Any]]) -> None:
    rows = [{**record, "measured": record["quality"]["series"]["user_ctr"]} for record in records[:3]]
    assert headline(rows).startswith("Version 3 was kept from the tag: user_ctr: the day's entities moved by ")
    assert "(2 of 3 publishes passed)." in headline(rows)


def test_what_passed_and_ranks_no_better_than_chance_is_said_so_first(records: list[dict[str, Any]]) -> None:
    rows = [{**record, "measured": record["quality"]["series"]["user_ctr"]} for record in records]
    told = headline(rows)
    assert told.startswith("Version 5 passed the gates (4 of 5 publishes passed). By inner product it ranks the last 4")
    assert "chance" not in told
    chance = {"worth": {"read_auc": 0.502, "read_auc_ci95": [0.48, 0.524]}}
    unread = {"version": 5, "coverage": {"by_event": 0.37}}
    rows = [{**row, "quality": {"pair": chance}, "measured": unread, "gates": []} for row in rows]
    assert headline(rows) == (
        "By inner product it ranks the last 5 days' traffic at a ROC-AUC of 0.502 (0.492 to 0.512), no better than "
        "chance: retrieve nothing by it alone. Version 5 passed the gates (5 of 5 publishes passed). On the last day "
        "37% of the events had a vector to read."
    )


def test_remarks() -> None:
    late = {"2024-01-01": "fingerprint", "2024-01-02": "another"}
    record = {"gates": ["a", "b"], "late": late, "gap": [], "corrects": True, "measured": {"space": "ctr-2"}}
    record["quality"] = {"tagged": {"events": 3}}
    assert notes_of(record, {"measured": {"space": "ctr-1"}}) == [
        "refused: a",
        "refused: b",
        "late days taken in: 2024-01-01, 2024-01-02",
        "the gates held it against what the tag points to, which is older than the version before",
        "delivered again with corrections",
        "a new space begins: ctr-2",
    ]
    assert notes_of({"gates": [], "quality": {}}) == []


def test_ageing_is_held_against_what_the_day_read() -> None:
    ages = [
        {"days": 1, "auc": 0.7, "current_auc": 0.7, "covered": 1.0},
        {"days": 7, "auc": 0.63, "current_auc": 0.7, "covered": 0.5},
        {"days": 14, "auc": None, "current_auc": None, "covered": None},
    ]
    changes = ageing_changes({"quality": {"pair": {"ageing": ages}}})
    assert changes == {1: 0.0, 7: pytest.approx(-0.1), 14: None}
    assert ageing_changes({"quality": {"pair": None}}) == {}


def test_names_are_escaped(records: list[dict[str, Any]]) -> None:
    evil = "<script>alert('x')</script>&"
    record = {**records[-1], "gates": [evil]}
    page = Page(render_quality([record], "user_ctr"))
    assert "script" not in page.tags
    assert page.text.count(evil) >= 2
