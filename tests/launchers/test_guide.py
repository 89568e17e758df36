"""docs/cluster.md: its commands are components' own, its figures follow from the code's."""

import re
import shlex
from pathlib import Path

import torchx.specs as specs
from torchx.specs.finder import get_component

from launchers.job import CPUS_A_GPU, MEMORY_A_GPU
from recsys.config import ModelConfig
from recsys.config.refresh import RefreshSettings
from recsys.train.planning import USABLE
from recsys.train.table_sizes import TableSize

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/cluster.md").read_text()
USERS, ITEMS, LAST = 450_000_000, 1_000_000_000, 100_000_000


def test_the_commands_are_components() -> None:
    commands = re.findall(r"torchx run -s \w+ ((?:launchers/\w+\.py:\w+)(?: [^\n\\]+(?:\\\n)?)+)", GUIDE)
    assert len(commands) == 3
    for command in commands:
        name, *arguments = shlex.split(command.replace("\\\n", " "))
        (role,) = specs.materialize_appdef(get_component(str(ROOT / name)).fn, arguments).roles
        assert (role.num_replicas, role.resource.gpu) == (2, 8)
        assert (role.resource.cpu, role.resource.memMB) == (8 * CPUS_A_GPU, 8 * MEMORY_A_GPU)
    assert f"--cpus-per-task={8 * CPUS_A_GPU}" in GUIDE
    assert f"--mem={8 * MEMORY_A_GPU}" in GUIDE
    for path, component in re.findall(r"`(launchers/\w+\.py):(\w+)`", GUIDE):
        assert f"def {component}(" in (ROOT / path).read_text()


def test_the_sizes_of_tables_are_those_of_the_code() -> None:
    room = USABLE * 80
    assert f"of 80 GB {room:.0f}" in GUIDE
    for dim in (ModelConfig().token_dim, 64):
        users, items, last = (TableSize("", rows, dim).bytes / 1e9 for rows in (USERS, ITEMS, LAST))
        once, twice = users + items + last, 2 * (users + items) + last
        row = (
            f"{4 * (dim + 1)} | {users:.1f} GB | {items:.1f} GB | {last:.1f} GB | **{once:.1f} GB** | {twice:.1f} GB |"
        )
        assert row in GUIDE
        least = f"| {dim} | {once:.1f} / 64 -> {-(-once // room):.0f} | {twice:.1f} / 64 -> {-(-twice // room):.0f} |"
        assert least in GUIDE


def test_the_sizes_of_the_store_are_those_of_the_format() -> None:
    dim = ModelConfig().vector_dim
    assert RefreshSettings().dtype == "float16"
    index = 64 / 2.4
    for dtype, data in (("float16", 2 * dim + 8), ("int8", dim + 16), ("int4", dim // 2 + 16)):
        users, items = ((data + index) * rows / 1e9 for rows in (USERS, ITEMS))
        line = next(line for line in GUIDE.splitlines() if line.startswith(f"| {dtype}"))
        assert f"{data} + 26.7" in line
        assert f"= {users:.1f} GB" in line
        assert f"= {items:.1f} GB" in line
        assert f"**{users + items:.1f} GB**" in line
