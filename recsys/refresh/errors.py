"""Why a refresh did not go all the way."""

from recsys.data.errors import DataError


class ClockSkewError(DataError):
    """An event whose time is not of the day it was delivered with."""


class GateRefusedError(Exception):
    """A publish did not take its tag: the snapshots are there, the tag stands where it was."""


class StoreLostError(Exception):
    """The store lacks what a record says was published."""
