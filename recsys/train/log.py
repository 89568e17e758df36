"""Where a training run's figures go: terminal, metrics.jsonl, TensorBoard. Only rank 0 writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recsys.atomic import write_text
from recsys.train.distributed import Environment


class RunLog:
    """One line of figures every now and then, as a progress bar where rank 0 has a terminal.

    Args:
        environment: this rank.
        title: shown before the figures; None: the terminal stays quiet.
        total: steps of the whole run.
        out: folder of `metrics.jsonl` and `tensorboard/`; None: neither is written.
        step: the step the run continues from. Later lines, of a run that was stopped after its last checkpoint, go.
    """

    def __init__(self, environment: Environment, *, title: str | None, total: int, out: Path | None, step: int) -> None:
        main = environment.is_main
        self.console = Console(quiet=title is None or not main, highlight=False, soft_wrap=True)
        self._title, self._total, self._step = title or "", total, step
        self._file = self._board = None
        if out is not None and main:
            out.mkdir(parents=True, exist_ok=True)
            from torch.utils.tensorboard import SummaryWriter  # half a second, of rank 0 alone

            _truncate(out / "metrics.jsonl", step)
            self._file = (out / "metrics.jsonl").open("a", buffering=1)
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        self._bar: Progress | None = None
        if self.console.is_terminal and not self.console.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            figures = TextColumn("{task.fields[figures]}")
            self._bar = Progress(*columns, TimeRemainingColumn(), figures, console=self.console, refresh_per_second=2)
            self._task = self._bar.add_task(self._title, total=total, completed=step, figures="")

    def __enter__(self) -> RunLog:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, record: dict[str, float]) -> None:
        """Log the figures of the steps up to `step`."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **record}) + "\n")
        if self._board is not None:
            for name, value in record.items():
                self._board.add_scalar(name, value, step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=_line(record))
        else:
            self.say(f"{self._title} {step}/{self._total} {_line(record)}")

    def say(self, message: RenderableType) -> None:
        """A line or a table in the terminal, above the progress bar."""
        self.console.print(message, markup=False)


def _line(record: dict[str, float]) -> str:
    """`loss 0.512, ctr ne 0.93 auc 0.71, 81,200 samples/s`"""
    parts = [f"loss {record['loss']:.4f}"]
    for name in record:
        if name.startswith("ne/"):
            task = name.removeprefix("ne/")
            auc = f" auc {record[f'auc/{task}']:.4f}" if f"auc/{task}" in record else ""
            parts.append(f"{task} ne {record[name]:.4f}{auc}")
    return ", ".join([*parts, f"{record['samples_per_second']:,.0f} samples/s"])


def _truncate(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last one that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError):
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))
