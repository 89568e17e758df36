"""CRC-32 of files that are too long for one reader: each rank reads some pieces, whose sums make that of the whole."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from recsys.data.ranks import Ranks

PIECE_BYTES = 64 * 2**20
"""Of a file that a rank reads in one go."""
_READ_BYTES = 1 << 20
_POLYNOMIAL = 0xEDB88320
"""CRC-32's, the lowest power in the highest bit."""
_ONE = 1 << 31
_UNREAD = -1
"""In place of the sum of a piece that its rank could not read."""


def crcs_of(files: Sequence[tuple[Path, int]], ranks: Ranks) -> list[int]:
    """The CRC-32 of each file, on every rank; each byte is read once, by one of them. A collective.

    Args:
        files: each with its size in bytes, as all ranks know it.
        ranks: who share.

    Raises:
        OSError: a file is gone, or shorter than that; on every rank.
    """
    pieces = [
        (number, start, min(PIECE_BYTES, size - start))
        for number, (_, size) in enumerate(files)
        for start in range(0, size, PIECE_BYTES)
    ]
    mine = range(ranks.rank, len(pieces), ranks.world_size)
    found, failed = np.full(len(mine), _UNREAD, np.int64), None
    try:
        for row, piece in enumerate(mine):
            found[row] = _crc_of(files[pieces[piece][0]][0], *pieces[piece][1:])
    except OSError as error:  # the others wait for what this rank reads
        failed = error
    at, crcs = ranks.gather((np.array(mine, np.int64), found))
    if failed is not None:
        raise failed
    sums = [0] * len(files)
    for place in np.argsort(at):
        number, _, length = pieces[at[place]]
        if crcs[place] == _UNREAD:
            raise OSError(f"{files[number][0]}: another rank cannot read it")
        sums[number] = combine(sums[number], int(crcs[place]), length)
    return sums


def combine(first: int, second: int, length: int) -> int:
    """The CRC-32 of bytes followed by `length` others, from theirs: zlib's crc32_combine, which Python does not have.

    That of the first is multiplied by x^(8 length), modulo CRC-32's polynomial over GF(2).
    """
    return _times(_power(8 * length), first) ^ second


def _crc_of(path: Path, start: int, length: int) -> int:
    crc = 0
    with path.open("rb") as file:
        file.seek(start)
        while length:
            data = file.read(min(_READ_BYTES, length))
            if not data:
                raise OSError(f"it ended {length} bytes early")
            crc, length = zlib.crc32(data, crc), length - len(data)
    return crc


@cache
def _power(exponent: int) -> int:
    """x^exponent."""
    power, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            power = _times(square, power)
        square, exponent = _times(square, square), exponent >> 1
    return power


def _times(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product
