"""What the components have in common: a `recsys` command on the ranks of some nodes, under torch elastic.

A component's own function says what the command line is; `on_ranks` adds the arguments that say where it runs.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any

import torchx.specs as specs
from torchx.components import dist
from torchx.specs.finder import ComponentValidationException

CPUS_A_GPU, MEMORY_A_GPU = 8, 64 * 1024
"""What fits eight times into clouds' machines of eight A100 or H100, with room for what runs there besides; MB."""
CPUS_A_RANK, MEMORY_A_RANK = 2, 8 * 1024
"""Of ranks without GPUs."""
LEAST_MEMORY = 1024
"""MB; a rank needs most of it to import torch and TorchRec."""

torchrun = getattr(dist, "torchrun", None) or dist.ddp  # its name before torchx's releases of 2026


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where a command runs: what a component asks its scheduler for. Each field is an argument of every component.

    Raises:
        ComponentValidationException: a value that no job could be started with.
    """

    j: str = field(default="1x2", metadata={"help": "nodes x ranks a node, say 2x8"})
    gpu: int = field(default=0, metadata={"help": "GPUs a node, one a rank; 0: the ranks work on the CPU"})
    cpu: int = field(default=0, metadata={"help": "CPUs a node; 0: 8 a GPU, without GPUs 2 a rank"})
    memory: int = field(default=0, metadata={"help": "MB a node; 0: 65536 a GPU, without GPUs 8192 a rank"})
    shared: str = field(
        default="", metadata={"help": "mounts for containers, CLAIM:/path or /on/the/host:/path, divided by commas"}
    )
    env: str = field(default="", metadata={"help": "more environment variables, NAME=value, divided by commas"})
    restarts: int = field(default=3, metadata={"help": "how often torch elastic starts all ranks anew if one fails"})
    retries: int = field(default=1, metadata={"help": "how often the scheduler starts the whole job anew if it fails"})
    image: str = field(
        default="recsys-derm:cuda", metadata={"help": "image with this package, for schedulers that run containers"}
    )

    def __post_init__(self) -> None:
        _require(re.fullmatch("[1-9][0-9]*x[1-9][0-9]*", self.j), "j", self.j, "give nodes x ranks a node, say 2x8")
        for name in ("gpu", "cpu", "memory", "restarts", "retries"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "give 0 or more")
        nodes, ranks, gpus = self.nodes, self.ranks_a_node, self.gpu
        remedy = f"j is {self.j}, and a rank uses one GPU: give --gpu {ranks} or -j {nodes}x{gpus}"
        _require(gpus in (0, ranks), "gpu", gpus, remedy)
        enough, least = "or more, or leave it out", LEAST_MEMORY * ranks
        _require(not self.cpu or self.cpu >= ranks, "cpu", self.cpu, f"give {ranks}, one a rank, {enough}")
        remedy = f"it is in MB a node, and takes {least} for {ranks} ranks, {enough}"
        _require(not self.memory or self.memory >= least, "memory", self.memory, remedy)
        self.environment()
        self.mounts()

    @property
    def nodes(self) -> int:
        """Machines; each runs one torchrun."""
        return int(self.j.split("x")[0])

    @property
    def ranks_a_node(self) -> int:
        """Processes of the command on each."""
        return int(self.j.split("x")[1])

    def resource(self) -> dict[str, int]:
        """A node's `cpu`, `gpu` and `memMB`: as given, or what follows from the GPUs, or from the ranks."""
        cpus, memory = (CPUS_A_GPU, MEMORY_A_GPU) if self.gpu else (CPUS_A_RANK, MEMORY_A_RANK)
        return {
            "cpu": self.cpu or cpus * self.ranks_a_node,
            "gpu": self.gpu,
            "memMB": self.memory or memory * self.ranks_a_node,
        }

    def environment(self) -> dict[str, str]:
        """Of every rank. `PET_MAX_RESTARTS` is torchrun's `--max_restarts`, which torchx has no argument for."""
        variables = {"OMP_WAIT_POLICY": "PASSIVE", "PET_MAX_RESTARTS": str(self.restarts)}  # PASSIVE: recsys/jobs.py
        if self.gpu:
            # a rank that finds fewer GPUs says so (recsys/train/distributed.py); NCCL says what is wrong, and no more
            variables |= {"RECSYS_GPUS": str(self.gpu), "NCCL_DEBUG": "WARN"}
        for assignment in filter(None, self.env.split(",")):
            name, equals, value = assignment.partition("=")
            remedy = "give NAME=value; one with a comma, where Slurm would cut it too, by the image or your shell"
            _require(equals and name.isidentifier(), "env", assignment, remedy)
            variables[name] = value
        return variables

    def mounts(self) -> dict[str, str]:
        """Where in the container -> what is mounted there: a folder of the host, or a claim by its name."""
        found = {}
        for mount in filter(None, self.shared.split(",")):
            source, _, path = mount.partition(":")
            well = source and re.fullmatch("/[^:]+", path) and path.rstrip("/") not in found
            _require(well, "shared", mount, "give CLAIM:/path, or /path/on/the/host:/path, each path once")
            found[path.rstrip("/")] = source
        return found


def command(name: str, *arguments: str, **options: str | bool) -> specs.AppDef:
    """`recsys <name> <arguments> --option value`, one process, which `on_ranks` makes a job of.

    Args:
        name: of the subcommand, and of the job.
        arguments: the positional ones.
        options: by their names, `_` for `-`; those that are empty or False are left out, True ones are flags.
    """
    line = [name, *arguments]
    for option, value in options.items():
        flag = f"--{option.replace('_', '-')}"
        line += [flag] if value is True else [flag, value] if value else []
    return specs.AppDef(name=name, roles=[specs.Role(name=name, image="", entrypoint="recsys", args=line)])


def on_ranks(component: Callable[..., specs.AppDef]) -> Callable[..., specs.AppDef]:
    """Give a component the arguments of `Ranks`, and put its command on the ranks that they ask for."""
    return _with_arguments(component, {})


def in_one_process(component: Callable[..., specs.AppDef]) -> Callable[..., specs.AppDef]:
    """The same for what is no work for several ranks."""
    return _with_arguments(component, {"j": "1x1"})


def _with_arguments(component: Callable[..., specs.AppDef], fixed: Mapping[str, Any]) -> Callable[..., specs.AppDef]:
    own = inspect.signature(component)
    added = [each for each in fields(Ranks) if each.name not in fixed]

    @wraps(component)
    def launch(*values: Any, **arguments: Any) -> specs.AppDef:
        ranks = Ranks(**fixed, **{each.name: arguments.pop(each.name) for each in added if each.name in arguments})
        bound = own.bind(*values, **arguments)
        for name in ("out", "store"):  # what the job writes
            _check_mounted(name, bound.arguments.get(name, ""), ranks)
        return _under_elastic(component(*bound.args, **bound.kwargs), ranks)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(x.name, keyword, default=x.default, annotation=x.type) for x in added]
    launch.__signature__ = own.replace(parameters=[*own.parameters.values(), *parameters])  # type: ignore[attr-defined]
    documented = [f"{each.name}: {each.metadata['help']}" for each in added]
    launch.__doc__ = "\n        ".join([(component.__doc__ or "").rstrip(), *documented]) + "\n    "
    return launch


def _under_elastic(app: specs.AppDef, ranks: Ranks) -> specs.AppDef:
    (role,) = app.roles
    launched = torchrun(
        *role.args,
        m="recsys.cli",
        name=app.name,
        j=ranks.j,
        **ranks.resource(),
        image=ranks.image,
        env=ranks.environment(),
        max_retries=ranks.retries,
    )
    _as_resumable(launched.roles[0])
    launched.roles[0].name = app.name  # the logs' names; torchx would call them all "cli"
    launched.roles[0].mounts = [_mount(source, path) for path, source in ranks.mounts().items()]
    return launched


def _as_resumable(role: specs.Role) -> None:
    """Start torchrun by a module that ends with 75 where it was stopped by SIGTERM, which is no failure."""
    command = role.args[-1]
    assert command.startswith("torchrun ")
    role.args[-1] = command.replace("torchrun", "python -m recsys.elastic", 1)


def _mount(source: str, path: str) -> specs.BindMount | specs.VolumeMount:
    kind = specs.BindMount if source.startswith("/") else specs.VolumeMount
    return kind(source, path)


def _check_mounted(name: str, folder: str, ranks: Ranks) -> None:
    """What a container writes beside its mounts is gone when it ends."""
    mounts = ranks.mounts()
    under = any(f"{folder}/".startswith(f"{path}/") for path in mounts)
    remedy = f"shared mounts {', '.join(mounts) or 'nothing'}, and what is written elsewhere ends with the container: "
    well = not mounts or not folder or "://" in folder or under
    _require(well, name, folder, f"{remedy}choose a folder below")


def _require(well: Any, name: str, value: Any, remedy: str) -> None:
    if not well:
        raise ComponentValidationException(f"{name} is {value!r}: {remedy}")
