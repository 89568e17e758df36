"""What the columns of an event log mean: which entity each feature describes, and in what form it comes.

A schema is one TOML file beside the Parquet files. It is the only place where a column's owner is stated, and so the
only place that decides which tower of an upstream model may see it.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from recsys.dates import span_ms
from recsys.mistakes import MistakesError, closest, collecting, meant, tell

T = TypeVar("T", "Feature", "Label")

OWNERS = ("user", "item", "context", "interaction")
KINDS = ("id", "ids", "sequence", "dense", "vector")
SPARSE_KINDS = ("id", "ids", "sequence")
LABEL_KINDS = ("binary", "value")
DELAYED = ("ignored", "wait", "corrected")
"""What `delayed` of a label may be."""
TABLES = {"features": "feature", "labels": "label"}
"""Field -> what its tables are called in the TOML."""
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "a string"),
    "int": (int, "an integer"),
    "float": ((int, float), "a number"),
}


class SchemaError(MistakesError):
    """A schema that contradicts itself, or data that contradict their schema."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One input column: whom it describes (`owner`) and in what form it comes (`kind`)."""

    name: str
    """Column name in the Parquet files; unique within the schema."""
    owner: str
    """`user`, `item`, `context` or `interaction`. Only user (item) features reach the user (item) tower."""
    kind: str
    """`id` (one integer or string), `ids` (a list), `sequence` (a list in time order, oldest first), `dense` (one
    number, true/false included), `vector` (a list of `width` numbers)."""
    rows: int = 0
    """Rows of the embedding table (id, ids, sequence). An id in [0, rows) keeps its row; any other id is hashed.
    0: they are counted in the events that it is trained on (`recsys.data.tables`); until then an id is its own row.
    The table of an entity's own id has one more, for ids that own none: see `recsys.models.vocabulary`."""
    table: str = ""
    """Name of the embedding table; features of one owner that name the same table share it. Default: own table."""
    max_length: int = 0
    """For `sequence`: only this many most recent elements are read. For `ids`: the first ones. 0 keeps all."""
    time: str = ""
    """For `sequence`: the column with the elements' times (list of int64 ms), if there is one."""
    width: int = 0
    """For `vector`: numbers per row."""

    def __post_init__(self) -> None:
        where = f"feature {self.name!r}"
        _require(bool(self.name), "a feature has an empty name: give the Parquet column's name")
        _require(self.owner in OWNERS, f"{where}: owner is {self.owner!r}; use one of {', '.join(OWNERS)}")
        if self.kind not in KINDS:
            raise SchemaError(f"{where}: kind is {self.kind!r}; use one of {', '.join(KINDS)}")
        sparse = self.kind in SPARSE_KINDS
        _require(self.rows >= 0, f"{where}: rows is {self.rows}; use 1 or more, or leave it out: they are counted then")
        _require(sparse or self.rows == 0, f"{where}: rows is {self.rows}; a {self.kind} has no table, leave it out")
        _require(sparse or not self.table, f"{where}: table is {self.table!r}; a {self.kind} has none, leave it out")
        _require(self.max_length >= 0, f"{where}: max_length is {self.max_length}; use 0 (all) or more")
        _require(
            self.kind in ("ids", "sequence") or self.max_length == 0,
            f"{where}: max_length is {self.max_length}; only ids and sequence have a length, leave it out",
        )
        _require(not self.time or self.kind == "sequence", f"{where}: time is {self.time!r}; only a sequence has times")
        _require(
            (self.kind == "vector") == (self.width > 0), f"{where}: width is {self.width}; a vector has >= 1, others 0"
        )

    @property
    def table_name(self) -> str:
        """The embedding table this feature reads: `table`, or the feature's own name."""
        return self.table or self.name

    @property
    def age_key(self) -> str:
        """The key under which `Batch.sparse` carries the age bucket of each element of a timed sequence."""
        return f"{self.name}.age"


@dataclass(frozen=True, kw_only=True)
class Label:
    """An outcome, and the rows for which it means something."""

    name: str
    """Column name."""
    kind: str = "binary"
    """`binary`: 0 or 1 (integer, float or boolean). `value`: a number of 0 or more, say revenue or watch time, whose
    expectation is learned."""
    valid: str = ""
    """Column (0 / 1) that is 1 on the rows this label exists for, say `is_click` for a conversion. Empty: all rows."""
    kept_negatives: float = 1.0
    """Share of the rows with a 0 that are in the files, where not all are: a bundle's probabilities are those of all
    rows. What a report says is of the rows in the files."""
    time: str = ""
    """Column of the time at which the outcome came (int64 ms; null: it has not). What came later than the end of what
    is trained on is not known then, and counts as not come. Empty: the label has been known all along."""
    window: str = ""
    """How long after its row an outcome counts: `30m`, `24h` or `7d`. Until then a row without one is open."""
    delayed: str = "ignored"
    """What a training makes of rows whose window has not ended. `ignored`: no outcome is a 0. `wait`: it does not learn
    from them. `corrected`: no outcome yet is as likely as the delays of older rows make it (Chapelle, Modeling delayed
    feedback in display advertising, KDD 2014)."""

    def __post_init__(self) -> None:
        kept = self.kept_negatives
        known = self.kind in LABEL_KINDS
        like = meant(self.kind, LABEL_KINDS)
        _require(known, f"label {self.name!r}: kind is {self.kind!r}{like}; use one of {', '.join(LABEL_KINDS)}")
        _require(
            not self.is_value or kept == 1,
            f"label {self.name!r}: kept_negatives is {kept}, but how often a value is 0 does not say what it is "
            "otherwise: leave it out, and give the rows that were kept their `weight`",
        )
        _require(0 < kept <= 1, f"label {self.name!r}: kept_negatives is {kept}; use a share above 0, 1 for all")
        _require(bool(self.name), "a label has an empty name: give the Parquet column's name")
        _require(
            self.valid != self.name, f"label {self.name!r}: valid names the label itself; name the enabling column"
        )
        self._check_delay()

    def _check_delay(self) -> None:
        where = f"label {self.name!r}"
        like = meant(self.delayed, DELAYED)
        _require(
            self.delayed in DELAYED, f"{where}: delayed is {self.delayed!r}{like}; use one of {', '.join(DELAYED)}"
        )
        _require(
            bool(self.time) == bool(self.window),
            f"{where}: time is {self.time!r}, window {self.window!r}; an outcome that comes later has both: time = "
            '"bought_at", window = "7d"',
        )
        _require(
            not self.window or span_ms(self.window) is not None,
            f"{where}: window is {self.window!r}; use minutes, hours or days: '30m', '24h', '7d'",
        )
        _require(
            self.delayed == "ignored" or bool(self.time),
            f"{where}: delayed is {self.delayed!r}, but without time and window no row is open: give both",
        )
        corrected = self.delayed == "corrected"
        _require(
            not (corrected and self.is_value),
            f"{where}: delayed is 'corrected', which is for labels of kind 'binary'; let a value wait",
        )
        _require(
            not corrected or self.kept_negatives == 1,
            f"{where}: delayed is 'corrected' and kept_negatives {self.kept_negatives}; among the rows with a 0 are "
            "some whose outcome will come, so give all rows, or let the label wait",
        )

    @property
    def window_ms(self) -> int:
        """The window in milliseconds; 0 where there is none."""
        return span_ms(self.window) or 0

    @property
    def columns(self) -> list[str]:
        """The columns that it is read from."""
        return [self.name, *([self.valid] if self.valid else []), *([self.time] if self.time else [])]

    @property
    def is_value(self) -> bool:
        """Whether it is a number of 0 or more, not 0 or 1."""
        return self.kind == "value"


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All columns of one event log.

    Raises:
        SchemaError: naming the feature or label, the value and the remedy.
    """

    features: tuple[Feature, ...] = ()
    labels: tuple[Label, ...] = ()
    outcomes: tuple[str, ...] = ()
    """Columns known only after the event (play time, revenue). They may not be used as features; labels never may."""
    timestamp: str = "timestamp"
    """Event time: int64, milliseconds since the epoch, UTC, not negative. Empty: the log has no event times."""
    user_id: str = "user_id"
    """The user's 64-bit id."""
    item_id: str = "item_id"
    """The item's 64-bit id."""
    weight: str = ""
    """A column of the events' weights, 0 or more: what is learned of a row counts so much, and only the ratios of
    weights matter. Whatever is measured counts every row once. Empty: all rows weigh the same."""
    withdrawn: str = ""
    """A 0 / 1 column of entity rows (the source's and the days' `users` and `items`): 1 takes the entity out of the
    snapshots, whatever its events, until a row says 0. Rows of users may lack it. Empty: nobody is withdrawn."""
    max_bad_rows: float = 0.001
    """Share of each file's rows, rounded up, that may be unreadable: they are left out and told of. More of them in a
    day, a source or a split are refused. 0: a single one is."""

    def __post_init__(self) -> None:
        _require(0 <= self.max_bad_rows < 1, f"max_bad_rows is {self.max_bad_rows}; use a share, 0 or more, below 1")
        names = [feature.name for feature in self.features]
        for what, listed in (("features", names), ("labels", [label.name for label in self.labels])):
            repeated = sorted({name for name in listed if listed.count(name) > 1})
            _require(not repeated, f"{what} {repeated} are listed twice: keep one of each")
        values = {label.name for label in self.labels if label.is_value}
        for label in self.labels:
            _require(
                label.valid not in values,
                f"label {label.name!r}: valid is {label.valid!r}, a label of kind 'value': name a 0 / 1 column",
            )
        future = {column for label in self.labels for column in label.columns} | set(self.outcomes)
        late = [label.name for label in self.labels if label.time]
        _require(
            self.timed or not late,
            f"labels {late} have the times of their outcomes, but timestamp is '': without event times no window "
            "begins. Leave out their `time` and `window`, or name the column of the event time",
        )
        leaks = sorted(future.intersection(names))
        _require(not leaks, f"features {leaks} are labels or outcomes, known only after the event: remove them")
        _require(
            self.timestamp not in names, f"feature {self.timestamp!r} is the event time: derive hour or day from it"
        )
        taken = {self.timestamp, self.user_id, self.item_id, *names, *future} - {""}
        _require(
            self.withdrawn not in taken,
            f"withdrawn is {self.withdrawn!r}, which is a feature, a label, an id or the time too: give it a column of "
            "its own",
        )
        _require(
            self.weight not in {*names, self.timestamp, self.user_id, self.item_id, self.withdrawn} - {""},
            f"weight is {self.weight!r}, which is a feature, an id or the time too: give it a column of its own",
        )
        for column, other in ((self.user_id, "item"), (self.item_id, "user")):
            strays = [feature.name for feature in self.owned_by(other) if feature.name == column]
            _require(
                not strays, f"feature {column!r} has owner {other!r}: it is the other entity's id, correct its owner"
            )
        aged = [feature.name for feature in self.features if feature.time]
        _require(
            self.timed or not aged,
            f"features {aged} have times, but timestamp is '': without event times there is nothing to count ages "
            "from. Leave out their `time`, or name the column of the event time",
        )
        keys = {feature.age_key for feature in self.features if feature.time}.intersection(names)
        _require(not keys, f"features {sorted(keys)} are named as a timed sequence's ages are: rename them")
        tables: dict[tuple[str, str], Feature] = {}
        for feature in self.features:
            if feature.kind not in SPARSE_KINDS:
                continue
            first = tables.setdefault((feature.owner, feature.table_name), feature)
            _require(
                first.rows == feature.rows,
                f"features {first.name!r} and {feature.name!r} share table {feature.table_name!r} "
                f"but say rows = {first.rows} and {feature.rows}: make them equal",
            )

    @property
    def timed(self) -> bool:
        """Whether the log has event times."""
        return bool(self.timestamp)

    def owned_by(self, *owners: str) -> tuple[Feature, ...]:
        """The features of these owners, in schema order."""
        return tuple(feature for feature in self.features if feature.owner in owners)

    def select(self, *, features: tuple[str, ...] | None = None, labels: tuple[str, ...] | None = None) -> Schema:
        """The same schema with only the named features and labels (None keeps all).

        Raises:
            SchemaError: names that are not in the schema; each sentence lists those that are.
        """
        with collecting() as found:
            kept = self.features if features is None else _named(self.features, features, "feature")
            kept_labels = self.labels if labels is None else _named(self.labels, labels, "label")
        if found:
            raise SchemaError(*found)
        outcomes = set(self.outcomes) | {column for label in self.labels for column in label.columns}
        outcomes -= {column for label in kept_labels for column in label.columns}
        weight = self.weight if kept_labels else ""  # of what is learned: rows without labels teach nothing
        return self._with(features=kept, labels=kept_labels, outcomes=tuple(sorted(outcomes)), weight=weight)

    def feature(self, name: str) -> Feature:
        """The feature of this name. Raises SchemaError listing the known names."""
        (found,) = _named(self.features, (name,), "feature")
        return found

    def label(self, name: str) -> Label:
        """The label of this name. Raises SchemaError listing the known names."""
        (found,) = _named(self.labels, (name,), "label")
        return found

    def columns(self) -> tuple[str, ...]:
        """Every Parquet column a reader of this schema needs, each once."""
        names = [*([self.timestamp] if self.timed else []), self.user_id, self.item_id]
        for feature in self.features:
            names += [feature.name] + ([feature.time] if feature.time else [])
        for label in self.labels:
            names += label.columns
        names += [self.weight] if self.weight else []
        return tuple(dict.fromkeys(names))

    def save(self, path: str | Path) -> None:
        """Write as TOML; only what differs from the defaults is written."""
        parts = [_lines(self)]
        for field, name in TABLES.items():
            parts += [f"[[{name}]]\n{_lines(entry)}" for entry in getattr(self, field)]
        Path(path).write_text("\n".join(filter(None, parts)), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Schema:
        """Read a schema TOML file.

        Raises:
            SchemaError: not TOML, unknown keys, or contradictions; each sentence starts with the path.
        """
        try:
            document = tomllib.loads((path if isinstance(path, Path) else Path(path)).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SchemaError(f"{path}: {error}; correct the TOML there") from None
        with collecting() as found:
            entries = {
                "features": [_build(Feature, entry, "feature") for entry in _entries(document, "feature", dict)],
                "labels": [_build(Label, entry, "label") for entry in _entries(document, "label", dict)],
                "outcomes": _entries(document, "outcomes", str),
            }
            kept = {name: tuple(entry for entry in each if entry is not None) for name, each in entries.items()}
            schema = _build(Schema, {**document, **kept}, "schema")
        if found:
            raise SchemaError(*(f"{path}: {told}" for told in found))
        return schema

    def _with(self, **changes: Any) -> Schema:
        return Schema(**{**{f.name: getattr(self, f.name) for f in fields(self)}, **changes})


def entity_schema(schema: Schema, owner: str) -> Schema:
    """What of a schema an entity's own rows hold: its features, no labels."""
    return schema.select(features=tuple(feature.name for feature in schema.owned_by(owner)), labels=())


def _named(entries: tuple[T, ...], names: tuple[str, ...], what: str) -> tuple[T, ...]:
    """The entries of these names. Tells a SchemaError of every name that is not there."""
    known = {entry.name: entry for entry in entries}
    for name in names:
        _require(name in known, f"unknown {what} {name!r}{meant(name, known)}; the schema has: {', '.join(known)}")
    return tuple(known[name] for name in names if name in known)


def _entries(document: dict[str, Any], key: str, kind: type) -> list[Any]:
    """Take a list of one type out of a TOML document."""
    found, example = document.pop(key, []), f"[[{key}]]" if kind is dict else f'{key} = ["play_time"]'
    fits = isinstance(found, list) and all(isinstance(entry, kind) for entry in found)
    _require(fits, f"{key} is no list: write {example}")
    return found if fits else []


def _lines(entry: Schema | Feature | Label) -> str:
    """What differs from the defaults, in TOML: strings, numbers and lists as JSON has them, but DEL escaped."""
    plain = [(f.name, getattr(entry, f.name), f.default) for f in fields(entry) if f.name not in TABLES]
    changed = {name: json.dumps(value, ensure_ascii=False) for name, value, usual in plain if value != usual}
    return "".join(f"{name} = {value}\n" for name, value in changed.items()).replace("\x7f", r"\u007f")


def _build(kind: type, entry: dict[str, Any], what: str) -> Any:
    """The entry as an instance of `kind`; None where it cannot be one, which is told."""
    where, known = f"{what} {entry.get('name', '')!r}", [f.name for f in fields(kind)]
    for key in sorted(set(entry) - set(known)):
        _require(False, f"{where}: unknown key {key!r}{meant(key, known)}; known keys: {', '.join(known)}")
        entry = {closest(key, known) or "": entry[key], **entry}  # what was probably meant, for the rest of the checks
    values = {key: value for key, value in entry.items() if key in known}
    fits = True
    for field in fields(kind):
        wanted, words = _TYPES.get(str(field.type), (object, ""))
        value = values.get(field.name, "" if wanted is str else 0)
        right = isinstance(value, wanted) and not isinstance(value, bool)
        _require(right, f"{where}: {field.name} is {value!r}; use {words}")
        needed = field.default is MISSING and field.name not in values
        _require(not needed, f"{where}: {field.name} is missing; give it, see README.md")
        fits &= right and not needed
    built = None
    with collecting() as found:  # one that raises ends its own checks alone
        built = kind(**values) if fits else None
    for told in found:
        tell(SchemaError(told))
    return built


def _require(condition: bool, message: str) -> None:
    if not condition:
        tell(SchemaError(message))
