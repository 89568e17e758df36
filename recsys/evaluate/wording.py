"""How figures and names read to people: shared by pages, plots and the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MISSING = "–"  # noqa: RUF001  an en dash is what tables show for no value
UNTIMED = "without event times"


def number(value: float | None, digits: int = 4) -> str:
    """A plain figure: 0.7275, 12,345; a dash where it is undefined."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def change(value: float | None, digits: int = 4) -> str:
    """A difference: +0.0130; a true minus sign for negative ones."""
    return MISSING if value is None else f"{value:+.{digits}f}".replace("-", "−")  # noqa: RUF001


def percent(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """A fraction as a percentage: 0.021 -> 2.10 %, or +2.10 % when signed; a true minus sign for negative ones."""
    if value is None:
        return MISSING
    return f"{points(value, digits, signed=signed)}\N{NO-BREAK SPACE}%"


def points(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """The same without the sign %, for columns that name it in their heading."""
    if value is None:
        return MISSING
    return f"{100 * value:{'+' if signed else ''}.{digits}f}".replace("-", "−")  # noqa: RUF001


def interval(bounds: Iterable[float | None]) -> str:
    """Both ends of an interval of lifts: +1.20 % to +2.90 %."""
    return " to ".join(percent(bound, signed=True) for bound in bounds)


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes as MB or GB, powers of 1000."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def moment(as_of: str | None) -> str:
    """An ISO 8601 time in UTC to the second: 2022-04-24 15:59:59 UTC; None: without event times."""
    return UNTIMED if as_of is None else f"{as_of.removesuffix('Z').partition('.')[0].replace('T', ' ')} UTC"


def delay(milliseconds: int | None) -> str:
    """How events read vectors: from 6 h 00 min after their as_of (publish_delay_ms); None: without event times."""
    if milliseconds is None:
        return UNTIMED
    return f"from {duration(milliseconds / 1000)} after their as_of (publish_delay_ms)"


def title(name: str) -> str:
    """A task's or upstream's name in running text: abbreviations of up to three letters in capitals."""
    return name.upper() if len(name) <= 3 else name.replace("_", " ")


def verdict(measured: Mapping[str, Any], metric: str = "auc") -> str:
    """`up` or `down` if the interval of the lift leaves out zero, else `unclear`."""
    low, high = measured.get(f"{metric}_lift_ci95") or (None, None)
    if low is None or high is None or low <= 0 <= high:
        return "unclear"
    return "up" if low > 0 else "down"
