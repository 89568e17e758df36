"""Moving between jagged rows (as TorchRec delivers sequences) and padded tensors (as attention needs them)."""

from __future__ import annotations

from typing import NamedTuple

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import torch
from torch import Tensor


class JaggedLayout(NamedTuple):
    """Where each row's elements lie in a packed tensor [N, ...], and how many of them a padded view [B, L, ...] shows.

    Elements beyond the first L of a row stay in the packed tensor but are neither padded nor averaged.
    """

    lengths: Tensor  # int64 [B]
    offsets: Tensor  # int64 [B + 1]
    width: int  # L

    @staticmethod
    def build(lengths: Tensor, width: int = 0) -> JaggedLayout:
        """Layout of rows of these `lengths` (int [B]). `width` 0 shows even the longest row whole (one host read)."""
        lengths = lengths.long()
        longest = width or (int(lengths.max()) if lengths.numel() else 0)
        return JaggedLayout(lengths, torch.ops.fbgemm.asynchronous_complete_cumsum(lengths), max(longest, 1))

    def pad(self, values: Tensor) -> Tensor:
        """Packed [N, d] -> [B, L, d], zeros behind each row's end."""
        return torch.ops.fbgemm.jagged_to_padded_dense(values, [self.offsets], [self.width], 0.0)

    def pack(self, padded: Tensor, total: int) -> Tensor:
        """Padded [B, L, d] -> [`total` = N, d]; elements that the padded view did not show become zeros."""
        return torch.ops.fbgemm.dense_to_jagged(padded, [self.offsets], total)[0]

    def mean(self, values: Tensor) -> Tensor:
        """Mean of each row's shown elements, [N, d] -> [B, d]; zeros for an empty row."""
        return self.pad(values).sum(1) / self.lengths.clamp(1, self.width).unsqueeze(1)

    def positions(self, total: int) -> Tensor:
        """0, 1, 2, ... within each row, int64 [`total` = N]."""
        starts = torch.repeat_interleave(self.offsets[:-1], self.lengths, output_size=total)
        return torch.arange(total, device=starts.device) - starts

    def visible(self) -> Tensor:
        """Key mask, bool [B, L]. An empty row shows its (zero) first element, so that no softmax is over nothing."""
        steps = torch.arange(self.width, device=self.lengths.device)
        return steps < self.lengths.clamp(min=1).unsqueeze(1)
