"""All results on a page: how each part ended, what is wrong, and the figures beside what is aimed at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.journal import table
from benchmarks.gpu.names import COPY, UNIFORM

Record = Mapping[str, Any]
CELL = ("part", "dtype", "dim", "ids", "missing", "bags", "keys")
"""What tells a cell from another."""
SWAP_AIM = 1.3
LEGEND = (
    "us: the device's median; of roof, of bus: shares of what memory and bus give; copy (of as many bytes), torch,\n"
    "fbgemm: their times over ours; aim: the least of that column"
)
FAILURES, REASONS = 40, 20


def summary(records: Sequence[Record]) -> str:
    """Of all records that there are so far."""
    pages = [_parts(records)]
    for kind, most, head in (("failure", FAILURES, "WRONG"), ("left out", REASONS, "left out")):
        found = [record for record in records if record["kind"] == kind]
        lines = [f"  {record['part']}: {record.get('what', '')} {record['reason']}" for record in found[:most]]
        more = [f"  and {len(found) - most} more: see results.jsonl"] if len(found) > most else []
        pages.append("\n".join([f"{head}:", *lines, *more]) if found else "")
    pages += [_timings(records), _others(records)]
    return "\n\n".join(page for page in pages if page) + "\n"


def _parts(records: Iterable[Record]) -> str:
    ended = [record for record in records if record["kind"] == "part"]
    rows = [[x["part"], x["outcome"], f"{x['seconds']:.0f} s", x.get("reason", "")] for x in ended]
    return table([["part", "outcome", "took", ""], *rows])


def _timings(records: Iterable[Record]) -> str:
    """A line a cell: the store's time, the share of each bound that it reaches, and over its time those of a copy of as
    many bytes and of torch and FBGEMM, which know the rows' numbers."""
    cells: dict[tuple[Any, ...], dict[str, Record]] = {}
    for record in records:
        if record["kind"] == "timing":
            cells.setdefault(tuple(record.get(name) for name in CELL), {})[record["variant"]] = record
    rows = []
    for found in cells.values():
        mine = next((record for name, record in found.items() if name.startswith("store")), None)
        if mine is None:
            continue
        ratios = {
            peer: next((x["device_us"] / mine["device_us"] for name, x in found.items() if name.startswith(peer)), None)
            for peer in (COPY, "torch", "fbgemm")
        }
        missing = f", {mine['missing']:.0%} missing" if mine.get("missing") else ""
        what = mine.get("bags") or f"{mine.get('ids')}{missing}"
        rows.append(
            [
                f"{mine['part']} {mine['dtype']} {mine['dim']}, {what}",
                f"{mine['keys']:,}",
                f"{mine['device_us']:,.1f}",
                f"{mine['device_p99_us']:,.1f}",
                f"{mine['wait_us']:,.1f}",
                f"{mine['of_roof']:.2f}",
                f"{mine['of_bus']:.2f}" if "of_bus" in mine else "",
                *(f"{ratio:.2f}" if ratio else "" for ratio in ratios.values()),
                aim(mine),
            ]
        )
    if not rows:
        return ""
    head = [
        "lookups",
        "ids",
        "us",
        "p99",
        "waited",
        "of roof",
        "of bus",
        "copy",
        "torch",
        "fbgemm",
        "aim",
    ]
    return table([head, *rows]) + f"\n{LEGEND}"


def aim(record: Record) -> str:
    """What a cell of the store's is to reach; empty if nothing was said of it."""
    part, dtype, keys = record["part"], record["dtype"], record["keys"]
    if part == "pooled":
        return "fbgemm 1.00"
    if part == "tiered":
        return "bus 0.90"
    if part != "grid" or record.get("missing") or record.get("ids") != UNIFORM:
        return ""
    if keys == 1_000:
        return "torch 0.67"
    if keys == 10_000:
        return "roof 0.75"
    if keys == 1_000_000 and dtype != "int4":
        return "roof 0.85" if dtype == "int8" else "roof 0.90"
    return ""


def _others(records: Iterable[Record]) -> str:
    lines = []
    for record in records:
        if record["kind"] == "machine":
            names = ("device", "torch", "cuda", "python", "date", "commit")
            lines.append(", ".join(f"{name} {record[name]}" for name in names))
        if record["kind"] == "roof" and record["part"] == "first":
            lines.append(f"memory copies {record['copy_GB_per_s']:,} GB/s; no call takes {record['empty_call_us']} us")
        if record["kind"] == "swap":
            p99 = record["ratios"]["p99"]
            lines.append(f"swap, {record['batch']:,} ids: p99 {p99:.2f} x that without (aim {SWAP_AIM} at most)")
        if record["kind"] == "loaded":
            lines.append(f"loading {record['dtype']} {record['dim']}: {record['GB_per_s']} GB/s")
        if record["kind"] == "timing" and record["part"] == "graphs":
            times = f"{record['device_us']} us on the device, {record['wait_us']} us for who waits"
            lines.append(f"graphs, {record['keys']:,} ids: {record['variant']}: {times}")
        if record["kind"] == "swapped":
            what = f"{record['graphs']} graphs give version {record['version']}"
            lines.append(f"graphs, {record['keys']:,} ids: after a swap {what}")
        if record["kind"] in ("training", "shares", "precision"):
            figures = ", ".join(f"{name} {value}" for name, value in record.items() if name not in ("part", "kind"))
            lines.append(f"{record['kind']}: {figures}")
    return "\n".join(lines)
