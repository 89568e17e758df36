"""A user's mistakes, all told at once: each is one sentence with its place, what was found and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches


class MistakesError(ValueError):
    """One mistake or several.

    Args:
        told: a sentence each.
    """

    def __init__(self, *told: str) -> None:
        super().__init__(*told)
        self.told = told

    def __str__(self) -> str:
        if len(self.told) < 2:
            return "".join(self.told)
        return "\n  ".join((f"{len(self.told)} mistakes", *self.told))


_kept: ContextVar[list[str] | None] = ContextVar("_kept", default=None)


def tell(mistake: MistakesError) -> None:
    """Raise it; within `collecting`, keep it and go on."""
    kept = _kept.get()
    if kept is None:
        raise mistake
    kept += mistake.told


@contextmanager
def collecting() -> Iterator[list[str]]:
    """Keep what the block has to `tell` in the list; what is raised ends the block, and is kept as well.

    A check that comes after one that failed may stumble over the same value, with an index or a division say: that ends
    the block too, and there is nothing more to tell.
    """
    found: list[str] = []
    token = _kept.set(found)
    try:
        yield found
    except MistakesError as mistake:
        found += mistake.told
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        if not found:
            raise
    finally:
        _kept.reset(token)


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one of the known names that is most like this one; None if none is."""
    by_lower = {each.lower(): each for each in known}
    found = get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def meant(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'click'?)` where one of the known names is like this one, else nothing."""
    found = closest(name, known)
    return f" (did you mean {found!r}?)" if found else ""
