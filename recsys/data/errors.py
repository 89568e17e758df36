"""The errors that bad input data raise."""

from __future__ import annotations

from recsys.mistakes import MistakesError


class DataError(MistakesError):
    """Data that cannot be read as their schema says; the message names the place, what was found and the remedy."""


class ClockSkewError(DataError):
    """An event whose time is not of the day it was delivered with."""


class RowError(DataError):
    """A value that cannot be what its column's role asks for."""

    def __init__(self, column: str, row: int, problem: str) -> None:
        super().__init__(f"column {column!r}, row {row}: {problem}")
        self.column = column
        """Name of the column."""
        self.row = row
        """Row within the table that was converted, counted from 0."""
        self.problem = problem
        """What was found and what to do about it."""
