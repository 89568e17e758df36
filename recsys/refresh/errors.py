"""Why a refresh did not go all the way."""


class GateRefusedError(Exception):
    """A publish did not take its tag: the snapshots are there, the tag stands where it was."""


class StoreLostError(Exception):
    """The store lacks what a record says was published."""


class UnfinishedError(ValueError):
    """A publication that was stopped half-way, which another command has to complete first."""
