"""What `recsys embed` has published between the days, under `out/daily/<upstream>/between`:

0001/<name>      a copy of the file of rows that was given
0001.json        the publication that they went into

The next cycle embeds these rows again, with its own model, as if they had come with its day; so does its correction,
which goes on from a snapshot that lacks them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys.atomic import whole_file
from recsys.refresh.publish import Publication


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One delivery."""

    number: int
    """From 1."""
    folder: Path
    """That of all deliveries."""
    publication: Publication
    """Where it went. Its key: `file`, `rows` (their CRC), `owner`, `since`, `model`, `after`."""

    @property
    def owner(self) -> str:
        """`user` or `item`."""
        return self.publication.key["owner"]

    @property
    def since(self) -> int:
        """When it came, ms: the beginning of the newest day that was published then."""
        return self.publication.key["since"]

    @property
    def root(self) -> Path:
        """The folder of its rows."""
        return root_of(self.folder, self.number)

    @property
    def file(self) -> Path:
        """Its rows."""
        return self.root / self.publication.key["file"]


def entries(folder: Path) -> list[Entry]:
    """Everything that was delivered, oldest first."""
    found = sorted(folder.glob("[0-9]*.json"))
    return [
        Entry(number=int(p.stem), folder=folder, publication=Publication(**json.loads(p.read_text()))) for p in found
    ]


def newest(delivered: Sequence[Entry]) -> int:
    """Number of the newest delivery; 0: there is none."""
    return delivered[-1].number if delivered else 0


def root_of(folder: Path, number: int) -> Path:
    """The folder of a delivery's rows."""
    return folder / f"{number:04d}"


def publication_of(folder: Path, number: int) -> Path:
    """The file that says where a delivery went, and that it is one."""
    return folder / f"{number:04d}.json"


def keep(folder: Path, number: int, rows: Path) -> None:
    """Copy the rows of a delivery to be; whole, and in the place of what one that was killed left behind."""
    root = root_of(folder, number)
    shutil.rmtree(root, ignore_errors=True)
    with whole_file(root / rows.name) as target, rows.open("rb") as source:
        shutil.copyfileobj(source, target)
