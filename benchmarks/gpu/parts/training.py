"""A DERM and a DLRM that reads the store, trained by the project's own code with TorchRec: samples a second, where the
time goes, and whether bfloat16 learns what float32 does. The SYNTHETIC market."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.journal import Journal, SkippedError, first_line
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.timing import free
from benchmarks.gpu.trace import shares


def run(settings: Settings, journal: Journal) -> None:
    """Each model in turn. Raises SkippedError where what they need is not there."""
    try:
        from benchmarks.gpu.models import derm, dlrm, market, process_group
    except ImportError as error:
        raise SkippedError(f"{error}: TorchRec, FBGEMM and what else `recsys` imports are needed") from error
    with tempfile.TemporaryDirectory() as name, process_group(alone=True) as environment:
        folder = Path(name)
        market(settings, folder)
        for model, train in {"derm": derm, "dlrm": dlrm}.items():
            try:
                _measure(model, partial(train, settings, folder, environment), settings, journal)
            except Exception as error:
                traceback.print_exc()
                journal.fail(f"{model}: {type(error).__name__}: {first_line(str(error))}")
            free(settings.device)


def _measure(
    model: str, train: Callable[[Path | None, Callable[[], Any]], Any], settings: Settings, journal: Journal
) -> None:
    """Train it as it is trained, in float32, and with some steps profiled."""
    from benchmarks.gpu.models import in_float32, losses, profiled

    found: dict[str, dict[int, float]] = {}
    ways: dict[str, Callable[[], AbstractContextManager[None]]] = {"bfloat16": nullcontext, "float32": in_float32}
    if settings.rehearse:
        del ways["bfloat16"]  # on the CPU all is float32
    for precision, way in ways.items():
        with tempfile.TemporaryDirectory() as out, way():
            result = train(Path(out), lambda: None)
            found[precision] = losses(Path(out))
        journal.write(
            "training",
            model=model,
            precision=precision,
            steps=result.steps,
            batch_size=settings.batch_size,
            samples_per_second=round(result.samples_per_second),
            input_wait=round(result.input_wait_fraction, 3),
            loss=found[precision][max(found[precision])],
        )
    if len(found) == 2:
        journal.write("precision", model=model, **differences(found["bfloat16"], found["float32"]))
    path = settings.out / f"{model}.trace.json.gz"
    profiled(lambda step: train(None, step), path, rehearse=settings.rehearse)
    journal.write("shares", model=model, **shares(path))


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> dict[str, float]:
    """Of two trainings' losses by step: the relative difference of the last, and the greatest in the second half."""
    steps = sorted(one.keys() & other.keys())
    each = [one[step] / other[step] - 1 for step in steps]
    return {"last": round(each[-1], 5), "greatest": round(max(map(abs, each[len(each) // 2 :])), 5)}
