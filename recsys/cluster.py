"""Machines that `recsys plan` plans for; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from recsys.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines that are all alike. The defaults are an H100 SXM's by its maker's data sheet."""

    world_size: int
    """GPUs of all machines."""
    local_world_size: int = 8
    """GPUs of one machine."""
    hbm_gb: float = 80.0
    """Memory of a GPU, 10^9 bytes; tables may fill four fifths of it."""
    host_gb: float = 1_000.0
    """Memory of a machine, 10^9 bytes; tables may fill four fifths of it."""
    hbm_gb_s: float = 3_350.0
    """Bandwidth of a GPU's memory, 10^9 bytes a second."""
    link_gb_s: float = 450.0
    """Of a GPU to the others of its machine, one way."""
    network_gb_s: float = 50.0
    """Of a GPU to other machines, one way."""

    def check(self) -> None:
        """Raise ConfigError unless there can be such machines."""
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {value:g}; use more than 0")
        if self.world_size % min(self.local_world_size, self.world_size):
            raise ConfigError(
                f"--world-size is {self.world_size}, --local-world-size {self.local_world_size}: give whole machines"
            )
