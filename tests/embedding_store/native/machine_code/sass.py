"""What a GPU's machine code says without a GPU: which accesses of a kernel are under way together.

A warp issues its instructions in order and waits where one needs a register that a load has yet to fill. So the order
of loads and of first uses in the code is the order of a warp's life.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PACKAGED = next(iter(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/cuobjdump")), None)
CUOBJDUMP = os.environ.get("CUOBJDUMP") or shutil.which("cuobjdump") or _PACKAGED
"""What prints machine code: named by CUOBJDUMP, on the PATH, or as pip installs it; None: it is not there."""

NVCC = shutil.which("nvcc")

_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[0-9T]+ )?\s*(\S+)\s*(.*?);")
_REGISTER = re.compile(r"\bR(\d+)\b")
_ROW_LOAD = re.compile(r"LDG\..*\bNA\b")  # past the first cache: of the table's bytes


@dataclass(frozen=True)
class Instruction:
    """One of a kernel."""

    address: int
    opcode: str
    operands: str

    @property
    def loads(self) -> set[int]:
        """The registers that a load of the table's bytes fills; none if it is no such load."""
        if not _ROW_LOAD.match(self.opcode):
            return set()
        first = int(_REGISTER.findall(self.operands)[0])
        return set(range(first, first + self._width))

    @property
    def reads(self) -> set[int]:
        """The registers whose values it takes; of a pair the first is enough."""
        if self.opcode.startswith("STG"):
            address, value = self.operands.rsplit(", ", 1)
            first = [int(register) for register in _REGISTER.findall(value)]
            return {int(r) for r in _REGISTER.findall(address)} | {f + i for f in first for i in range(self._width)}
        return {int(register) for register in _REGISTER.findall(self.operands.partition(",")[2])}

    @property
    def _width(self) -> int:
        return 4 if ".128" in self.opcode else 2 if ".64" in self.opcode else 1


def assembled(name: str, folder: Path) -> tuple[Path, str]:
    """The machine code for Hopper of a source of this folder, and what the assembler says of it."""
    cubin = folder / "instances.cubin"
    options = ["-std=c++17", "-fmad=false", "-gencode=arch=compute_90,code=sm_90", "-Xptxas=-v", "-cubin"]
    assert NVCC is not None
    command = [NVCC, *options, Path(__file__).parent / name, "-o", cubin]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return cubin, run.stdout + run.stderr


def spills(said: str) -> list[tuple[str, ...]]:
    """Bytes of the stack frame, of stores and of loads that spill, of each kernel that the assembler speaks of."""
    return _SPILLS.findall(said)


def kernels(cubin: Path) -> dict[str, list[Instruction]]:
    """The instructions of each kernel, by its mangled name; without what only diverged warps run. Needs CUOBJDUMP."""
    assert CUOBJDUMP is not None
    command = [CUOBJDUMP, "-sass", cubin]
    listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    found = {}
    for part in listing.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        body = body.partition("WARPSYNC.COLLECTIVE")[0]
        found[name.strip()] = [Instruction(int(a, 16), op, rest) for a, op, rest in _INSTRUCTION.findall(body)]
    return found


def loop_orders(instructions: Sequence[Instruction]) -> list[str]:
    """Of each innermost loop that reads the table: L for a load, u for the first use of what one brought."""
    return sorted(order for loop in _innermost_loops(instructions) if "L" in (order := _order(loop)))


def _innermost_loops(instructions: Sequence[Instruction]) -> Iterator[list[Instruction]]:
    spans = []
    for instruction in instructions:
        target = re.search(r"0x([0-9a-f]+)$", instruction.operands.strip())
        if instruction.opcode == "BRA" and target and int(target[1], 16) <= instruction.address:
            spans.append((int(target[1], 16), instruction.address))
    for start, end in spans:
        if not any((start, end) != other and start <= other[0] and other[1] <= end for other in spans):
            yield [i for i in instructions if start <= i.address <= end]


def _order(instructions: Sequence[Instruction]) -> str:
    order, under_way = "", list[set[int]]()
    for instruction in instructions:
        for brought in [load for load in under_way if load & instruction.reads]:
            order += "u"
            under_way.remove(brought)
        if instruction.loads:
            order += "L"
            under_way.append(instruction.loads)
    return order
