"""MovieLens 1M, or any split of its form, by the protocol of neural collaborative filtering: HR@10 and NDCG@10.

    python -m benchmarks.leave_one_out --data DIR --out runs/leave-one-out

DIR holds a split as `benchmarks/ncf.py` describes it (`python -m benchmarks.ncf_split` makes one of other logs): each
user's latest choice is to be found among 99 items that the user never chose. Rows: popularity, iALS by the library
`implicit` (the extra `study`), and a DERM (benchmarks/ncf_derm.py). What is tuned, iALS's settings and DERM's passes,
is chosen by the NDCG@10 of a validation split that is made of the training rows alone, by the same rule: each user's
latest of them, with negatives of its own. Then each learns from all training rows, and the test is scored once.
Intervals are over users. Stopped, the same command goes on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.common import print_record
from benchmarks.ncf import Found, Split, interval, leave_last_out, read_split, repeated
from benchmarks.ncf_derm import Chosen
from recsys.atomic import write_json
from recsys.study.als import Settings, fit, is_installed
from recsys.train.distributed import process_group

FACTORS, REGULARIZATION, ALPHA = (64, 192), (10.0, 30.0, 100.0), (1.0, 4.0)
"""Of iALS, each with each."""
ITERATIONS = 12


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    data: Path = Path("../shared/data/ml-1m-ncf")
    """Folder of the split."""
    out: Path = Path("runs/leave-one-out")
    """Folder of what is trained."""
    passes: int = 8
    """Of the DERM, at most."""
    seed: int = 0
    """Of the validation's draws and of the DERM."""


def main(options: Options) -> None:
    """Measure, and print the table."""
    split = read_split(options.data)
    validation, _ = leave_last_out(split.users, split.items, split.times, split.item_count, seed=options.seed)
    told(split, validation)
    found = {"popularity": Found.of(split, popularity(split))}
    show("popularity", found["popularity"])
    if is_installed():
        chosen = tuned(validation, options.out / "ials.json")
        found["iALS"] = Found.of(split, factorised(split, chosen))
        show(f"iALS, {chosen.text}", found["iALS"])
    else:
        print("iALS: left out, `implicit` is not installed (the extra `study`)")
    scores, passes = derm(split, validation, options)
    found["DERM"] = Found.of(split, scores)
    show(f"DERM, {passes} passes", found["DERM"])
    figures = {"users": len(split.tested), "negatives": split.negatives.shape[1], "passes": passes}
    for name, places in found.items():
        figures[name] = [round(float(each.mean()), 4) for each in (places.hits(), places.gains())]
    for name in found.keys() - {"DERM"}:
        figures[f"hr_over_{name}"] = [round(x, 4) for x in interval(found["DERM"].hits() - found[name].hits())]
    print_record("leave_one_out", figures)


def told(split: Split, validation: Split) -> None:
    """Say what is in the files."""
    print(
        f"{len(split.users):,} training rows ({repeated(split):,} of them again, {np.mean(split.times == 0):.1%} "
        f"without a time), {len(split.tested):,} users to test, {split.item_count:,} items; "
        f"{split.negatives.shape[1]} negatives each, but {int((~split.counted).sum())} are the held-out item itself "
        "and count for nothing\n"
        f"validation: {len(validation.tested):,} users, their latest training row",
        flush=True,
    )


def popularity(split: Split) -> NDArray[np.float64]:
    """Training rows of each candidate."""
    return np.bincount(split.items, minlength=split.item_count)[split.candidates].astype(np.float64)


def tuned(validation: Split, record: Path) -> Settings:
    """The best of iALS's settings, which are kept in this file once they are known."""
    if record.is_file():
        return Settings(**json.loads(record.read_text()))
    tried = [Settings(*each) for each in product(FACTORS, REGULARIZATION, ALPHA)]
    best = max(tried, key=lambda each: _ndcg(validation, factorised(validation, each), each.text))
    write_json(record, best._asdict())
    return best


def factorised(split: Split, settings: Settings) -> NDArray:
    """iALS's scores of the candidates, float32 [T, 1 + K]."""
    users, items = fit(split.users, split.items, (split.user_count, split.item_count), settings, ITERATIONS)
    return np.einsum("td,tkd->tk", users[split.tested], items[split.candidates])


def derm(split: Split, validation: Split, options: Options) -> tuple[NDArray, int]:
    """The DERM's scores of the test's candidates, and after how many passes."""
    with process_group() as environment:
        tuned = Chosen(validation, options.out / "validation", options.seed)
        _, scores = tuned.train(options.passes, environment, judged=True)
        passes = int(np.argmax(scores)) + 1
        print(f"DERM, validation NDCG@10 by pass: {', '.join(f'{score:.4f}' for score in scores)}", flush=True)
        final = Chosen(split, options.out / "all", options.seed)
        return final.train(passes, environment, judged=False)[0], passes


def show(name: str, found: Found) -> None:
    """A row of the table."""
    hr, ndcg = (interval(values) for values in (found.hits(), found.gains()))
    cells = (f"{mean:.4f} ({low:.4f}, {high:.4f})" for mean, low, high in (hr, ndcg))
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _ndcg(split: Split, scores: NDArray, name: str) -> float:
    found = Found.of(split, scores)
    print(f"iALS, {name}: validation NDCG@10 {found.gains().mean():.4f}, HR@10 {found.hits().mean():.4f}", flush=True)
    return float(found.gains().mean())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
