"""Finding Parquet files, checking all of them before anything is read, and writing folders that appear whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.columns import canonical_types, join_types, with_defaults
from recsys.data.errors import DataError
from recsys.data.footers import KEPT_CHUNKS, Footer, read_footer
from recsys.data.schema import Schema
from recsys.mistakes import closest

ROW_GROUP_ROWS = 16_384
_SHOWN = 5
"""Names of files that a message lists."""
_WINDOW_CHUNKS = KEPT_CHUNKS // 2
"""Column chunks of files that are shuffled together; half, so that there is room for a second stream's."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of one of the files, and where it begins."""

    file: Path
    """The file."""
    index: int
    """Number of the row group within the file."""
    first_row: int
    """Row of the file that it begins with."""
    rows: int
    """Rows it holds, more than 0."""


@dataclass(frozen=True)
class StoredFile:
    """What the footer of a file says."""

    row_groups: tuple[RowGroup, ...]
    """In stored order."""
    rows: int
    """Rows it holds, more than 0."""
    chunks: int
    """Column chunks that the footer describes."""


@dataclass(frozen=True)
class Footers:
    """What the footers of a list of files say."""

    files: tuple[StoredFile, ...]
    """In the order of the list."""
    types: Mapping[str, pa.DataType]
    """Column name -> canonical type for all files together."""

    @property
    def row_groups(self) -> tuple[RowGroup, ...]:
        """Of all files, in their order."""
        return tuple(group for file in self.files for group in file.row_groups)

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    def keeping(self, wanted: Callable[[RowGroup], bool]) -> Footers:
        """The same without the row groups that are not wanted."""
        files = (replace(file, row_groups=tuple(filter(wanted, file.row_groups))) for file in self.files)
        return replace(self, files=tuple(files))

    def shuffled(self, files: np.random.Generator, groups: np.random.Generator) -> tuple[RowGroup, ...]:
        """The row groups in random order, in which reading parses a footer once.

        Files are drawn as long as all their footers can be kept, then the row groups of these are permuted; then the
        next files follow. So a list whose footers can be kept is permuted as a whole.

        Args:
            files: draws the order of the files.
            groups: draws the order of the row groups.
        """
        windows: list[list[int]] = []
        room = 0
        for index in files.permutation(len(self.files)).tolist():
            if not windows or self.files[index].chunks > room:
                windows.append([])
                room = _WINDOW_CHUNKS
            windows[-1].append(index)
            room -= self.files[index].chunks
        order: list[RowGroup] = []
        for window in windows:
            together = [group for index in sorted(window) for group in self.files[index].row_groups]
            order += [together[index] for index in groups.permutation(len(together)).tolist()]
        return tuple(order)


def find_files(root: Path, patterns: Sequence[str]) -> list[Path]:
    """The files below `root` that match the patterns: in the patterns' order, each pattern's sorted by path, once each.

    Args:
        root: The data folder.
        patterns: Glob patterns relative to it, say `market/events/2022-04-2*/**/*.parquet`.

    Raises:
        DataError: `root` is no folder, or patterns that are absolute or match no file.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder: give the folder that holds the prepared data")
    found: dict[Path, None] = {}
    wrong = list[str]()
    for pattern in patterns:
        try:
            found.update(dict.fromkeys(_matches(root, pattern)))
        except DataError as error:
            wrong += error.told
    if wrong:
        raise DataError(*wrong)
    return list(found)


def _matches(root: Path, pattern: str) -> list[Path]:
    if not pattern or Path(pattern).is_absolute():
        raise DataError(f"pattern {pattern!r} must be relative to the data folder {root}, say events/*.parquet")
    matches = sorted(root.glob(pattern))
    files = [path for path in matches if path.is_file()]
    if not files:
        what = f"only folders, such as {matches[0]}: end it with /*.parquet" if matches else "nothing"
        raise DataError(
            f"pattern {pattern!r} matches {what} in {root}{'' if matches else _where_it_ends(root, pattern)}: prepare "
            "the data, or correct the pattern"
        )
    return files


def _where_it_ends(root: Path, pattern: str) -> str:
    """Of a pattern that matches nothing, what is there instead of the first part of it that is not."""
    *folders, _ = parts = Path(pattern).parts
    there = max(count for count in range(len(parts)) if count == 0 or any(root.glob("/".join(folders[:count]))))
    begun = "/".join(parts[:there])
    names = sorted({path.name for path in root.glob(f"{begun}/*" if begun else "*")})
    like = closest(parts[there], names)
    if like:
        return f" (did you mean {'/'.join((*parts[:there], like, *parts[there + 1 :]))!r}?)"
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f", where {begun or 'it'} holds {shown or 'nothing'}"


def check_files(files: Sequence[Path], schema: Schema) -> int:
    """Check every file's footer against the schema and return the number of rows of all files.

    Raises:
        DataError: a sentence for each thing that is wrong, naming the first file of which it is: it cannot be opened,
            holds no row, lacks a column, or has one whose type does not fit its role or differs in kind (integer,
            string) from that of an earlier file.
    """
    return read_footers(files, schema).rows


def read_footers(files: Sequence[Path], schema: Schema) -> Footers:
    """Read and check every footer. Raises what `check_files` raises."""
    if not files:
        raise DataError("no files to read: give at least one Parquet file")
    found: list[StoredFile] = []
    types: dict[str, pa.DataType] = {}
    common: set[str] = set()
    wrong: dict[str, list[Path]] = {}
    for file in files:
        try:
            footer = _read_footer(file)
            read_as = canonical_types(footer.schema, schema)
            types.update({name: join_types(types.get(name, kind), kind, name) for name, kind in read_as.items()})
        except DataError as error:
            for told in error.told:
                wrong.setdefault(told, []).append(file)
            continue
        common = common & set(read_as) if found else set(read_as)
        groups, first = [], 0
        for index, rows in enumerate(footer.group_rows):
            if rows:
                groups.append(RowGroup(file, index, first, rows))
            first += rows
        found.append(StoredFile(tuple(groups), first, footer.chunks))
    if wrong:
        raise DataError(*(_of_files(told, of) for told, of in wrong.items()))
    # An optional column that some files lack is read from none.
    return Footers(tuple(found), with_defaults({name: types[name] for name in types if name in common}, schema))


def _of_files(told: str, files: Sequence[Path]) -> str:
    """What is wrong with a file, and with how many more."""
    more = f" (and so in {len(files) - 1} more files)" if len(files) > 1 else ""
    return f"{files[0]}{told if told.startswith(' ') else f': {told}'}{more}"


def _read_footer(file: Path) -> Footer:
    try:
        footer = read_footer(file)
    except FileNotFoundError:
        raise DataError(" does not exist: correct the path, or prepare the data") from None
    except (pa.ArrowException, OSError) as error:
        size = file.stat().st_size if file.is_file() else 0
        raise DataError(
            f" ({size} bytes) is no readable Parquet file: {str(error).rstrip('.')}. Write it anew, or remove it"
        ) from None
    if not any(footer.group_rows):
        raise DataError(" holds no rows: remove it, or write the rows it should have")
    return footer


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` on a clean exit, and vanishes on any other.

    Raises:
        DataError: `folder` is there and is no source that was prepared before (it has no `schema.toml`).
    """
    if folder.exists() and not (folder / "schema.toml").is_file():
        raise DataError(f"{folder} is there and is no prepared source: move it away, or choose another output folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(f".{folder.name}-{os.getpid()}-{end}") for end in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)  # left by a process that was killed
    new.mkdir()
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_part(table: pa.Table, folder: Path) -> None:
    """Write one Parquet file `part-0.parquet`, in row groups small enough to shuffle, with checksums of its pages."""
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-0.parquet", row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
