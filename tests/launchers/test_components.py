import ast
import shlex
import sys
from pathlib import Path

import pytest
import torchx.specs as specs
from torchx.specs.finder import get_component

LAUNCHERS = Path(__file__).parents[2] / "launchers"
ARGUMENTS = {
    "upstream": ["--config", "c.toml", "--data", "a folder", "--out", "o"],
    "refresh": ["--config", "c.toml", "--data", "a folder", "--out", "o"],
    "downstream": ["--config", "c.toml", "--data", "a folder", "--out", "o"],
    "ranker": ["--config", "c.toml", "--arm", "a", "--data", "a folder", "--out", "o", "--store", "s"],
    "twotower": ["--config", "c.toml", "--data", "a folder", "--out", "o", "--store", "s"],
}


def component(name: str):
    """As `torchx run` finds it: that also checks types and docstring."""
    return get_component(f"{LAUNCHERS / name}.py:{name}").fn


@pytest.mark.parametrize("name", ARGUMENTS)
def test_component_is_the_recsys_command(name: str):
    given = [*ARGUMENTS[name], "-j", "2x4", "--cpu", "8", "--gpu", "4", "--memory", "1000", "--image", "img"]
    (role,) = specs.materialize_appdef(component(name), given).roles
    command = shlex.split(role.args[1])
    assert command[command.index("-m") + 1 :] == ["recsys.cli", name, *ARGUMENTS[name]]
    assert command[command.index("--nproc_per_node") + 1] == "4"
    assert role.num_replicas == 2
    assert role.image == "img"
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (8, 4, 1000)
    assert role.env["RECSYS_GPUS"] == "4"
    assert role.env["OMP_WAIT_POLICY"] == "PASSIVE"


def test_flags_are_passed_on():
    given = [*ARGUMENTS["refresh"], "--day", "2024-01-31", "--cold", "True", "--every", "True", "--train", "True"]
    (role,) = specs.materialize_appdef(component("refresh"), given).roles
    assert shlex.split(role.args[1])[-5:] == ["--day", "2024-01-31", "--cold", "--every", "--train"]


def test_rankers_are_told_of_another_store():
    (role,) = specs.materialize_appdef(component("downstream"), [*ARGUMENTS["downstream"], "--store", "s"]).roles
    assert shlex.split(role.args[1])[-2:] == ["--store", "s"]
    assert "RECSYS_GPUS" not in role.env


def test_a_ranker_is_compiled_on_request():
    (role,) = specs.materialize_appdef(component("ranker"), [*ARGUMENTS["ranker"], "--compiled", "True"]).roles
    assert shlex.split(role.args[1])[-1] == "--compiled"


def test_scoring_is_the_recsys_command():
    given = ["--bundle", "a bundle", "--data", "d", "--out", "o", "--files", "*/*.parquet", "--store", "s", "-j", "1x3"]
    (role,) = specs.materialize_appdef(component("score"), given).roles
    command = shlex.split(role.args[1])
    wanted = ["score", "a bundle", "--data", "d", "--out", "o", "--files", "*/*.parquet", "--device", "cpu"]
    assert command[command.index("recsys.cli") + 1 :] == [*wanted, "--store", "s"]
    assert command[command.index("--nproc_per_node") + 1] == "3"


@pytest.mark.parametrize("name", [*ARGUMENTS, "score"])
def test_docstring_is_the_command_line(name: str):
    docstring = component(name).__doc__ or ""
    command = shlex.split(docstring.split("`")[1])
    assert command[:5] == ["torchx", "run", "-s", "local_cwd", f"launchers/{name}.py:{name}"]
    assert specs.materialize_appdef(component(name), command[5:]).roles


@pytest.mark.parametrize("path", sorted(LAUNCHERS.glob("*.py")), ids=lambda path: path.stem)
def test_launchers_import_only_torchx(path: Path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names <= {"torchx", "launchers"}
