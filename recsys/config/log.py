"""A raw log of actions, and what `recsys prepare log` makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from recsys.config.rules import is_word, require
from recsys.config.toml import Config
from recsys.dates import span_ms

SESSION = "session"
"""What `within` says of an action that must follow in the same session."""
UNITS = {"s": 1_000, "ms": 1, "us": -1_000, "ns": -1_000_000}
"""Unit of a time -> factor to ms; below zero a divisor."""
DRAWS = ("popularity", "uniform")


@dataclass(frozen=True, kw_only=True)
class LogFiles:
    """Where the log lies and which column is what."""

    files: tuple[str, ...]
    """Glob patterns of Parquet or CSV files, relative to `--source`, or else to the folder of this config."""
    user: str
    """Column of the user's id: integers or strings."""
    item: str
    """Column of the item's id."""
    time: str
    """Column of the time: numbers, Arrow timestamps or dates, or strings, ISO 8601 unless `time_format` is given."""
    action: str = ""
    """Column of the kind of action. Empty: every row is the first of `actions`."""
    session: str = ""
    """Column of the session, for `within = "session"`."""
    price: str = ""
    """Column of the price. An event knows the item's last price before it; its own is an outcome."""
    quantity: str = ""
    """Column of the quantity, an outcome: known after the event alone."""
    context: tuple[str, ...] = ()
    """Columns that describe the moment and are known before the action: features of the context."""
    ignore: tuple[str, ...] = ()
    """Values of the action column whose rows are left out. One that is neither here nor in `actions` is a bad row."""
    time_unit: str = ""
    """`s`, `ms`, `us` or `ns` since 1970 UTC, of times that are numbers; empty: told from their size."""
    time_format: str = ""
    """How strings are read, as strptime does: `%d/%m/%Y %H:%M`. Empty: ISO 8601."""
    time_zone: str = "UTC"
    """Zone of times that name none: `Europe/Berlin`."""
    utc_offset_hours: float = 0.0
    """When a day begins, and what `hour` and `weekday` are: in the time zone this many hours before UTC."""
    max_bad_rows: float = 0.001
    """Share of each file's rows, rounded up, that may be unreadable: left out and told of; more are refused."""
    memory_gb: float = 4.0
    """What the engine may keep in memory; the rest goes to disk, beside the output."""

    def __post_init__(self) -> None:
        require(len(self.files) > 0, 'files is empty; give at least one glob pattern, say ["events.parquet"]')
        for name in ("user", "item", "time"):
            require(bool(getattr(self, name)), f"{name} is empty; name its column")
        require(self.user != self.item, f"user and item are both the column {self.user!r}; name two")
        twice = sorted({name for name in self.context if self.context.count(name) > 1})
        require(not twice, f"context names {twice} twice; name each column once")
        require(
            self.time_unit in ("", *UNITS), f"time_unit is {self.time_unit!r}; use one of {', '.join(UNITS)}, or none"
        )
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError):
            require(False, f"time_zone is {self.time_zone!r}; use a name such as UTC or Europe/Berlin")
        require(
            -14 <= self.utc_offset_hours <= 14, f"utc_offset_hours is {self.utc_offset_hours}; use hours from -14 to 14"
        )
        require(0 <= self.max_bad_rows < 1, f"max_bad_rows is {self.max_bad_rows}; use a share, 0 or more, below 1")
        require(self.memory_gb >= 0.5, f"memory_gb is {self.memory_gb}; use 0.5 or more")
        require(not self.ignore or bool(self.action), "ignore names actions, but action names no column; name it")


@dataclass(frozen=True, kw_only=True)
class ActionConfig:
    """A kind of action. The one without `given` and `column` makes the rows: its label tells them from negatives."""

    value: str = ""
    """What stands for it in the log's action column; empty: its name."""
    once: bool = False
    """For the action that makes the rows: only a user's first on each item makes one."""
    given: str = ""
    """Action that must have come before: this one is a label of rows where that one was done."""
    within: str = ""
    """How long after the row's own event it counts: `session`, or a span such as `30m`, `24h`, `7d`. It is credited to
    the user's latest row of the item, that one alone."""
    column: str = ""
    """A column of the row itself that says whether it was done: a rating, the seconds watched."""
    at_least: float = 1.0
    """It was where `column` is this or more."""

    def __post_init__(self) -> None:
        require(
            not self.within or self.within == SESSION or span_ms(self.within) is not None,
            f"within is {self.within!r}; use 'session', or minutes, hours or days: '30m', '24h', '7d'",
        )
        require(not self.column or not self.value, f"column is {self.column!r} and value {self.value!r}; give one")
        if self.column:
            require(not self.within, f"within is {self.within!r}; a column tells of its own row, leave it out")
        else:
            require(
                bool(self.given) == bool(self.within),
                f"given is {self.given!r}, within {self.within!r}; an action that follows another has both: "
                "given = 'view', within = 'session'",
            )
        require(not self.once or self.makes_rows, "once is true; it is for the action that makes the rows")

    @property
    def makes_rows(self) -> bool:
        """Whether its events are rows."""
        return not self.given and not self.column


@dataclass(frozen=True, kw_only=True)
class NegativesConfig:
    """Items that were at hand and not chosen, beside each row: for a log that does not tell what was shown."""

    ratio: int | None = None
    """How many for each row. 0: the log has impressions, and rows without a later action are the negatives. Left out: 0
    where a label is a `column`; else 4, fewer where that would be more than two million rows, but 1 at least."""
    draw: str = "popularity"
    """`popularity`: as often as others chose them in the hours around; `uniform`: of all items between their first and
    their last event."""
    hours: int = 0
    """How many hours before and after; 0: as many as hold 100 events of the log's mean rate, from 3 to 168. No item is
    drawn that its user chose in these hours; where the rows are `once`, none that the user ever chose."""
    seed: int = 0
    """Of the draw."""

    def __post_init__(self) -> None:
        require(self.ratio is None or 0 <= self.ratio <= 100, f"ratio is {self.ratio}; use 0 to 100")
        require(self.draw in DRAWS, f"draw is {self.draw!r}; use one of {', '.join(DRAWS)}")
        require(0 <= self.hours <= 8760, f"hours is {self.hours}; use 1 or more, or 0: told from the log")
        require(self.seed >= 0, f"seed is {self.seed}; use 0 or more")


@dataclass(frozen=True, kw_only=True)
class PastConfig:
    """Features made of strictly earlier events."""

    last: int = 20
    """Items of a user's history of each action, with their times; 0: no histories."""
    windows: tuple[str, ...] = ("3h", "24h", "7d")
    """Spans that a user's, an item's and a category's actions are counted over, beside all of them."""

    def __post_init__(self) -> None:
        require(0 <= self.last <= 1000, f"last is {self.last}; use 0 to 1000")
        for window in self.windows:
            require(span_ms(window) is not None, f"windows names {window!r}; use minutes, hours or days: '3h', '7d'")
        require(len(set(self.windows)) == len(self.windows), f"windows is {self.windows}; name each once")


@dataclass(frozen=True, kw_only=True)
class EntityTable:
    """What is known of users, or of items, beside the log: one row each, features as they are at the end of the log."""

    files: tuple[str, ...] = ()
    """Glob patterns of Parquet or CSV files. Empty: `features` are columns of the log itself, each entity's first."""
    id: str = ""
    """Column of the id; empty: it is named as in the log."""
    features: tuple[str, ...] = ()
    """Columns to read; empty: all of the files'."""
    dense: tuple[str, ...] = ()
    """Those that are numbers though they are whole and take few values; others of the kind are categories."""
    split: dict[str, str] = field(default_factory=dict)
    """Column -> separator, of strings that are lists: {genres = "|"}."""

    def __post_init__(self) -> None:
        require(
            bool(self.files) or bool(self.features), "files and features are empty; give files, or columns of the log"
        )
        for name, listed in (("dense", self.dense), ("split", tuple(self.split))):
            strays = [column for column in listed if self.features and column not in self.features]
            require(not strays, f"{name} names {strays}, which features lacks; add it there")
        for column, separator in self.split.items():
            require(bool(separator), f"split.{column} is empty; give the separator, say '|'")


@dataclass(frozen=True, kw_only=True)
class ItemTable(EntityTable):
    """The same of items."""

    category: str = ""
    """Feature whose values are counted as items are, and by user: how often before the user chose such an item."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.category or not self.features or self.category in self.features,
            f"category is {self.category!r}, which features lacks; add it there",
        )
        require(self.category not in self.split, f"category is {self.category!r}, a list; name a column of one value")


@dataclass(frozen=True, kw_only=True)
class LogConfig(Config):
    """What `recsys prepare log LOG.toml` reads."""

    log: LogFiles
    """The log."""
    actions: dict[str, ActionConfig] = field(default_factory=lambda: {"action": ActionConfig()})
    """Name of each kind of action -> what it means; names become labels, and parts of features' names."""
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    """Negatives, where the log has no impressions."""
    features: PastConfig = field(default_factory=PastConfig)
    """Histories and counts."""
    users: EntityTable | None = None
    """Features of users."""
    items: ItemTable | None = None
    """Features of items."""

    def __post_init__(self) -> None:
        rows = [name for name, action in self.actions.items() if action.makes_rows]
        require(
            len(rows) == 1,
            f"actions has {len(rows)} that make rows ({', '.join(rows) or 'none'}): of all but one say what they "
            "follow, like = { given = 'view', within = 'session' }",
        )
        for name, action in self.actions.items():
            self._check(name, action)
        values = [self.value(name) for name, action in self.actions.items() if not action.column]
        both = sorted({value for value in values if values.count(value) > 1} | set(values) & set(self.log.ignore))
        require(not both, f"actions and log.ignore name the values {both} twice; name each once")
        require(
            self.ratio != 0 or len(self.actions) > 1,
            f"negatives.ratio is 0 and {rows[0]!r} the only action: nothing is to be predicted; name one that follows",
        )

    def _check(self, name: str, action: ActionConfig) -> None:
        where = f"actions.{name}"
        require(is_word(name), f"{where}: use letters, digits and _ (it names a column), and `value` for what it is")
        known = [other for other in self.actions if other != name]
        require(
            not action.given or action.given in known,
            f"{where}.given is {action.given!r}; use one of {', '.join(known)}",
        )
        require(
            action.within != SESSION or bool(self.log.session),
            f"{where}.within is 'session', but log.session names no column; name it, or use a span such as '30m'",
        )
        require(
            bool(self.log.action) or not action.within,
            f"{where} follows another, but log.action names no column to tell them by; name it",
        )
        seen = [name]
        while action.given:
            require(action.given not in seen, f"{where}.given comes back to itself: {' <- '.join(seen)}")
            seen.append(action.given)
            action = self.actions[action.given]

    def value(self, name: str) -> str:
        """What stands for an action in the log's column."""
        return self.actions[name].value or name

    @property
    def row_action(self) -> str:
        """The action whose events are rows."""
        return next(name for name, action in self.actions.items() if action.makes_rows)

    @property
    def ratio(self) -> int | None:
        """Negatives a row; None: as many as fit the number of rows."""
        if self.negatives.ratio is None and any(action.column for action in self.actions.values()):
            return 0
        return self.negatives.ratio
