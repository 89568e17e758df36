import ast
import shlex
import sys
from pathlib import Path

import pytest
import torchx.specs as specs
from torchx.specs.finder import ComponentValidationException, get_component

LAUNCHERS = Path(__file__).parents[2] / "launchers"
JOB = ["--config", "c.toml", "--data", "a folder", "--out", "o"]
ARGUMENTS = {
    "upstream": JOB,
    "refresh": JOB,
    "downstream": JOB,
    "ranker": ["--config", "c.toml", "--arm", "a", "--data", "a folder", "--out", "o", "--store", "s"],
    "twotower": [*JOB, "--store", "s"],
    "score": ["--bundle", "a bundle", "--data", "d", "--out", "o"],
    "run": ["--study", "study.toml", "--out", "o", "--data", "a folder"],
    "daily": ["--study", "study.toml", "--out", "o", "--data", "a folder"],
    "embed": ["--config", "c.toml", "--rows", "r.parquet", "--owner", "item", "--data", "a folder", "--out", "o"],
    "prior": JOB,
}
FILES = {name: name for name in ARGUMENTS} | {"run": "pipeline", "daily": "pipeline"}
FILES |= {"embed": "between", "prior": "between"}
POSITIONAL = {"score": "--bundle", "run": "--study", "daily": "--study"}
ALONE = ("embed", "prior")


def component(name: str):
    """As `torchx run` finds it: that also checks types and docstring."""
    return get_component(f"{LAUNCHERS / FILES[name]}.py:{name}").fn


def launched(name: str, *options: str) -> specs.Role:
    (role,) = specs.materialize_appdef(component(name), [*ARGUMENTS[name], *options]).roles
    return role


def words(role: specs.Role) -> list[str]:
    """What follows `python -m recsys.cli`."""
    command = shlex.split(role.args[1])
    assert command[:3] == ["python", "-m", "recsys.elastic"]
    assert command[command.index("recsys.cli") - 1] == "-m"
    return command[command.index("recsys.cli") + 1 :]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_component_is_the_recsys_command(name: str):
    wanted = [word for word in ARGUMENTS[name] if word != POSITIONAL.get(name)]
    assert words(launched(name))[: len(wanted) + 1] == [name, *wanted]


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - set(ALONE)))
def test_ranks_are_placed(name: str):
    role = launched(name, "-j", "2x4", "--cpu", "8", "--gpu", "4", "--memory", "5000", "--image", "img")
    command = shlex.split(role.args[1])
    assert command[command.index("--nproc_per_node") + 1] == "4"
    assert (role.name, role.num_replicas, role.image) == (name, 2, "img")
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (8, 4, 5000)
    assert role.env["RECSYS_GPUS"] == "4"
    assert role.env["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("name", ALONE)
def test_what_one_process_does_is_one_process(name: str):
    role = launched(name)
    command = shlex.split(role.args[1])
    assert (role.num_replicas, command[command.index("--nproc_per_node") + 1]) == (1, "1")
    with pytest.raises(SystemExit):
        launched(name, "-j", "1x2")


@pytest.mark.parametrize(
    ("options", "resource"),
    [
        ((), (4, 0, 16384)),
        (("-j", "3x1"), (2, 0, 8192)),
        (("-j", "1x1", "--gpu", "1"), (8, 1, 65536)),
        (("-j", "2x8", "--gpu", "8"), (64, 8, 524288)),
        (("-j", "2x8", "--gpu", "8", "--cpu", "90"), (90, 8, 524288)),
        (("-j", "2x8", "--gpu", "8", "--memory", "700000"), (64, 8, 700000)),
    ],
)
def test_cpus_and_memory_follow_from_the_gpus(options: tuple[str, ...], resource: tuple[int, int, int]):
    found = launched("refresh", *options).resource
    assert (found.cpu, found.gpu, found.memMB) == resource


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-j", "8"), "j is '8': give nodes x ranks a node, say 2x8"),
        (("-j", "0x8"), "j is '0x8': give nodes x ranks"),
        (("-j", "1:2x8"), "j is '1:2x8': give nodes x ranks"),
        (("-j", "2x8", "--gpu", "4"), "gpu is 4: j is 2x8, and a rank uses one GPU: give --gpu 8 or -j 2x4"),
        (("--gpu", "-1"), "gpu is -1: give 0 or more"),
        (("--retries", "-1"), "retries is -1: give 0 or more"),
        (("-j", "1x8", "--cpu", "4"), "cpu is 4: give 8, one a rank, or more, or leave it out"),
        (("-j", "1x8", "--memory", "512"), "memory is 512: it is in MB a node, and takes 8192 for 8 ranks, or more"),
        (("--shared", "recsys"), "shared is 'recsys': give CLAIM:/path, or /path/on/the/host:/path"),
        (("--shared", "a:/x,b:/x/"), "shared is 'b:/x/': give CLAIM:/path"),
        (("--shared", "recsys:shared"), "shared is 'recsys:shared': give CLAIM:/path"),
        (("--shared", "recsys:/shared"), "out is 'o': shared mounts /shared, and what is written elsewhere ends with"),
        (("--env", "NCCL_IB_HCA=mlx5_0,mlx5_1"), "env is 'mlx5_1': give NAME=value; one with a comma"),
    ],
)
def test_mistakes_are_named(options: tuple[str, ...], message: str):
    with pytest.raises(ComponentValidationException) as caught:
        launched("refresh", *options)
    assert message in str(caught.value)


def test_a_store_that_is_written_outlasts_the_container():
    mounted = ["--config", "c.toml", "--data", "d", "--out", "/shared/o", "--shared", "recsys:/shared/"]
    for store in ("s3://bucket/store", "/shared/store"):
        assert specs.materialize_appdef(component("twotower"), [*mounted, "--store", store]).roles
    with pytest.raises(ComponentValidationException, match="store is '/sharedstore'"):
        specs.materialize_appdef(component("twotower"), [*mounted, "--store", "/sharedstore"])


def test_flags_are_passed_on():
    options = ("--day", "2024-01-31", "--cold", "True", "--every", "True", "--after_refused", "True", "--train", "True")
    wanted = ["--day", "2024-01-31", "--cold", "--every", "--after-refused", "--train"]
    assert words(launched("refresh", *options))[-6:] == wanted


def test_rankers_are_told_of_another_store():
    role = launched("downstream", "--store", "s")
    assert words(role)[-2:] == ["--store", "s"]
    assert "RECSYS_GPUS" not in role.env


def test_a_ranker_is_compiled_on_request():
    assert words(launched("ranker", "--compiled", "True"))[-1] == "--compiled"


def test_scoring_is_told_what_to_score():
    role = launched("score", "--files", "*/*.parquet", "--store", "s")
    assert words(role)[6:] == ["--files", "*/*.parquet", "--device", "cpu", "--store", "s"]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_docstring_is_the_command_line(name: str):
    docstring = component(name).__doc__ or ""
    command = shlex.split(docstring.split("`")[1])
    assert command[:5] == ["torchx", "run", "-s", "local_cwd", f"launchers/{FILES[name]}.py:{name}"]
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
