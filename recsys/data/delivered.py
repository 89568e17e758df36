"""Files of one owner's rows, by their footers: whose rows they hold, and whether their columns fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recsys.data.errors import DataError
from recsys.data.files import read_footers
from recsys.data.footers import read_footer
from recsys.data.schema import Schema, entity_schema

OTHER = {"user": "item", "item": "user"}
"""Entity -> the other one."""


def id_column(schema: Schema, owner: str) -> str:
    """Name of the column of this owner's id."""
    return schema.user_id if owner == "user" else schema.item_id


def with_rows(files: Sequence[Path]) -> list[Path]:
    """Those of the files that hold rows. Raises DataError for one that cannot be read."""
    found = []
    for file in files:
        try:
            rows = sum(read_footer(file).group_rows)
        except Exception:  # the check of all footers has the words for it
            rows = 1
        found += [file] if rows else []
    return found


def check_rows(files: Sequence[Path], schema: Schema, owner: str, beside: Sequence[Path] = ()) -> None:
    """Check that files hold rows of this owner, whose columns are of the same types as those of the events `beside`.

    Raises:
        DataError: naming the file; a column that is missing or of another type, or rows of the other owner.
    """
    own, other = id_column(schema, owner), id_column(schema, OTHER[owner])
    for file in files:
        try:
            read_footers([*beside, file], entity_schema(schema, owner))
        except DataError as error:
            names = column_names(file)
            if own in names or other not in names:
                raise
            raise DataError(
                f"{file}: column {own!r} is missing, but {other!r} is there: these are rows of {OTHER[owner]}s. "
                f"Deliver them as such, and here rows of {owner}s, each with its {own!r}"
            ) from error


def column_names(file: Path) -> list[str]:
    """Of a file's columns; none of one that cannot be read."""
    try:
        return read_footer(file).schema.names
    except Exception:  # no footer that can be read
        return []
