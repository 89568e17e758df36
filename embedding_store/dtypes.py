"""How vectors are stored: the five dtypes, float32 -> stored columns (`encode`) and back (`decode`).

int8 and int4 are quantised row by row: `value = scale * q + offset` with q in 0 .. 255 or 0 .. 15, offset the row's
least value and scale its range over the greatest q. The error is at most half a `scale`. int4 packs two values into
a byte, the earlier one in the low half; with an odd dimension the last high half is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from embedding_store.errors import InvalidArgumentError

_FLOAT32_MAX = torch.finfo(torch.float32).max


MAX_DIM = 65_536
"""Most values of a vector: what every lookup, on CPU and GPU, has room for, and far more than anybody stores."""


@dataclass(frozen=True)
class Dtype:
    """One way of storing a vector."""

    name: str
    """As in `store.create(..., dtype=name)`."""
    torch_dtype: torch.dtype
    """Type of a stored element; uint8 for the quantised ones."""
    bits: int
    """Bits one value takes."""
    limit: float
    """Greatest absolute value that can be stored. Quantised rows need a range, greatest - least, within float32."""

    @property
    def quantised(self) -> bool:
        """Whether rows carry a scale and an offset."""
        return self.torch_dtype == torch.uint8

    @property
    def levels(self) -> int:
        """Greatest q of a quantised value."""
        return 2**self.bits - 1

    def width(self, dim: int) -> int:
        """Stored elements of a vector of `dim` values."""
        return (dim + 1) // 2 if self.bits == 4 else dim

    def row_bytes(self, dim: int) -> int:
        """Bytes of a stored row, its id and scales included."""
        return 8 + self.width(dim) * self.torch_dtype.itemsize + (8 if self.quantised else 0)


DTYPES = {
    dtype.name: dtype
    for dtype in (
        Dtype("float32", torch.float32, 32, _FLOAT32_MAX),
        Dtype("float16", torch.float16, 16, torch.finfo(torch.float16).max),
        Dtype("bfloat16", torch.bfloat16, 16, torch.finfo(torch.bfloat16).max),
        Dtype("int8", torch.uint8, 8, _FLOAT32_MAX / 2),
        Dtype("int4", torch.uint8, 4, _FLOAT32_MAX / 2),
    )
}


def dtype_named(name: str) -> Dtype:
    """The dtype of this name. Raises InvalidArgumentError listing the known ones."""
    if name not in DTYPES:
        raise InvalidArgumentError(f"dtype is {name!r}; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


@dataclass(frozen=True)
class Encoded:
    """N vectors as they are stored."""

    vector: Tensor  # [N, W], Dtype.torch_dtype, W = Dtype.width(D)
    scale: Tensor | None = None  # float32 [N], quantised only
    offset: Tensor | None = None  # float32 [N], quantised only

    @staticmethod
    def empty(rows: int, dim: int, dtype: Dtype, device: torch.device | str = "cpu") -> Encoded:
        """Uninitialised room for `rows` vectors."""
        scale, offset = (torch.empty(rows, device=device) for _ in range(2)) if dtype.quantised else (None, None)
        return Encoded(torch.empty(rows, dtype.width(dim), dtype=dtype.torch_dtype, device=device), scale, offset)

    @property
    def rows(self) -> int:
        """N."""
        return self.vector.shape[0]

    def slice(self, start: int, stop: int) -> Encoded:
        """Rows start .. stop - 1, sharing memory."""
        return self._map(lambda x: x[start:stop])

    def select(self, rows: Tensor) -> Encoded:
        """A copy of these rows, in this order; `rows` int64 [M] or bool [N]."""
        return self._map(lambda x: x[rows])

    def copy_(self, start: int, source: Encoded) -> None:
        """Overwrite the rows from `start` on with those of `source`, on whatever device it is."""
        for mine, other in zip(self._tensors(), source._tensors(), strict=True):
            mine[start : start + source.rows].copy_(other)

    def _tensors(self) -> list[Tensor]:
        return [x for x in (self.vector, self.scale, self.offset) if x is not None]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Encoded:
        return Encoded(*map(function, self._tensors()))


def encode(
    vectors: Tensor,  # float [N, D]
    dtype: Dtype,
) -> Encoded:
    """The stored form of `vectors`, whose absolute values must be within `dtype.limit`."""
    if not dtype.quantised:
        return Encoded(vectors.to(dtype.torch_dtype))
    vectors = vectors.to(torch.float32)
    offset = vectors.amin(1)
    scale = (vectors.amax(1) - offset) / dtype.levels
    divisor = torch.where(scale > 0, scale, 1.0)  # a constant row: q = 0, value = offset
    q = ((vectors - offset[:, None]) / divisor[:, None]).round_().clamp_(0, dtype.levels).to(torch.uint8)
    if dtype.bits == 4:
        q = torch.nn.functional.pad(q, (0, q.shape[1] % 2))
        q = q[:, 0::2] | (q[:, 1::2] << 4)
    return Encoded(q, scale, offset)


def decode(encoded: Encoded, dim: int, dtype: Dtype) -> Tensor:
    """The vectors as float32 [N, D]; for float32 they share memory with `encoded`."""
    if encoded.scale is None or encoded.offset is None:
        return encoded.vector.to(torch.float32)
    q = encoded.vector
    if dtype.bits == 4:
        q = torch.stack((q & 15, q >> 4), dim=2).flatten(1)[:, :dim]
    return q.to(torch.float32).mul_(encoded.scale[:, None]).add_(encoded.offset[:, None])
