"""What is wrong with rows is found before work is lost on them: `OUT/quarantine/<name>.json` lists, part by part,

of                what was read: identities of the files, what of the schema decides, the day that rows must be of, the
                  ids that must be distinct
rows, newest      file -> how many rows it has; and the time of the newest readable one, ms
quarantined       the rows that no reader sees: file, row, column, problem
read_as_0         feature -> how many of its values are null or NaN

As long as these are the same files and the same schema nothing is read again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from recsys.atomic import write_json
from recsys.data.scan import BadRow, Findings, Part, Visitor, join, judge, scan, without_repeats
from recsys.data.shares import read_share
from recsys.identity import identify_files
from recsys.train.distributed import Environment, broadcast
from recsys.train.exchange import ALONE, of_all, ranks_of
from recsys.train.heartbeat import computing
from recsys.train.watch import Pulse

_WITHOUT_EFFECT = ("outcomes", "withdrawn", "max_bad_rows")
"""What of a schema does not decide which rows can be read."""
_NAMED = 5
"""Features that the line in the terminal names."""


def screen(
    out: Path,
    name: str,
    parts: Sequence[Part],
    root: Path,
    environment: Environment | None = None,
    visitor: Visitor | None = None,
) -> Findings:
    """Read every row of these files once, or look up what was found before; a rank that freezes meanwhile is named. A
    collective.

    Args:
        out: folder of the run.
        name: of the file that is written to `out/quarantine`.
        parts: the files.
        root: folder that they lie below.
        environment: the ranks that share the reading; None: this process alone.
        visitor: is shown this rank's share of the first part's readable rows, in the same pass; where nothing is read
            again their ids, times and labels are, for it alone.

    Returns:
        what was found; readers must leave out its `quarantine`.

    Raises:
        DataError: more rows of a part are bad than its schema's `max_bad_rows` allows, or a file cannot be read.
        ClockSkewError: the same, and the first of them is of another day.
    """
    with Pulse(f"the screening of {name}", environment or ALONE):
        return _screened(out, name, parts, root, environment, visitor)


def summaries(out: Path) -> dict[str, dict[str, Any]]:
    """Name -> `rows`, `quarantined` and `read_as_0` of everything that was screened for a run."""
    found = {}
    for path in sorted((out / "quarantine").glob("[!.]*.json")):
        whole = join([_findings(entry, out) for entry in json.loads(path.read_text())])
        found[path.stem] = {"rows": whole.rows, "quarantined": len(whole.bad), "read_as_0": read_as_0(whole)}
    return found


def read_as_0(found: Findings) -> dict[str, int]:
    """Feature -> how many of its values are read as 0, where there are any."""
    return {feature: count for feature, (count, _) in found.missing.items() if count}


def _screened(
    out: Path,
    name: str,
    parts: Sequence[Part],
    root: Path,
    environment: Environment | None,
    visitor: Visitor | None,
) -> Findings:
    path, main = out / "quarantine" / f"{name}.json", environment is None or environment.is_main
    of = [_identify(part, root) for part in parts] if main else []
    known = _load(path, of, root) if main else None
    if environment is not None:
        known = broadcast(known, environment)
    found = []
    for number, part in enumerate(parts):
        shown = None if number else visitor
        found.append(_scan(part, environment, shown) if known is None else known[number])
        judge(part, found[-1])
    whole = join(found)
    if main and known is None:
        write_json(path, [_entry(*each, root) for each in zip(of, found, strict=True)])
        _tell(name, whole, path)
    if known is not None and visitor is not None:
        facts, skip = parts[0].schema.select(features=()), known[0].quarantine
        for read in read_share(parts[0].files, facts, skip, ranks_of(environment), visitor.as_of):
            visitor.add(read)
    return whole


def _scan(part: Part, environment: Environment | None, visitor: Visitor | None) -> Findings:
    """What all ranks find, each in its share of the files."""
    if environment is None or environment.world_size == 1:
        return without_repeats(part, scan(part, 0, 1, visitor))
    # Pages of one rank's share may be bad: all leave the files out, or stop.
    shares = of_all(lambda: scan(part, environment.rank, environment.world_size, visitor), environment)
    whole, order = join(shares), {file: number for number, file in enumerate(part.files)}
    whole = replace(whole, bad=tuple(sorted(whole.bad, key=lambda bad: (order[bad.file], bad.row))))
    with computing():
        return without_repeats(part, whole)


def _identify(part: Part, root: Path) -> dict[str, Any]:
    schema = {key: value for key, value in asdict(part.schema).items() if key not in _WITHOUT_EFFECT}
    schema["features"] = [{**feature, "rows": 0} for feature in schema["features"]]  # any size does
    return {
        "files": identify_files(part.files, root),
        "schema": schema,
        "window": part.window,
        "distinct": part.distinct,
    }


def _load(path: Path, of: Sequence[Mapping[str, Any]], root: Path) -> list[Findings] | None:
    """What was found in the same files before."""
    if not path.is_file():
        return None
    entries = json.loads(path.read_text())
    if [entry["of"] for entry in entries] != json.loads(json.dumps(of)):
        return None
    return [_findings(entry, root) for entry in entries]


def _entry(of: Mapping[str, Any], found: Findings, root: Path) -> dict[str, Any]:
    rows = {file.relative_to(root).as_posix(): count for file, count in found.files.items()}
    bad = [{**row._asdict(), "file": row.file.relative_to(root).as_posix()} for row in found.bad]
    missing = {name: {"values": count, "of": readable} for name, (count, readable) in found.missing.items()}
    return {"of": of, "rows": rows, "newest": found.newest, "quarantined": bad, "read_as_0": missing}


def _findings(entry: Mapping[str, Any], root: Path) -> Findings:
    return Findings(
        files={root / file: rows for file, rows in entry["rows"].items()},
        bad=tuple(BadRow(**{**row, "file": root / row["file"]}) for row in entry["quarantined"]),
        missing={name: (count["values"], count["of"]) for name, count in entry["read_as_0"].items()},
        newest=entry["newest"],
    )


def _tell(name: str, found: Findings, path: Path) -> None:
    """One line on the rows that are left out, one on the values that are read as 0; nothing where there are none."""
    if found.bad:
        print(f"{name}: {len(found.bad)} of {found.rows:,} rows quarantined: see {path}", flush=True)
    missing = [f"feature {feature}: {count:,} of {rows:,}" for feature, (count, rows) in found.missing.items() if count]
    if missing:
        more = f"; and {len(missing) - _NAMED} more features" if len(missing) > _NAMED else ""
        print(f"{name}: {'; '.join(missing[:_NAMED])} values null or NaN, read as 0{more}", flush=True)
