"""What the schedulers are asked for, as torchx renders it; a nightly of torchx renders some of it differently."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from torchx.components import dist
from torchx.runner import get_runner

from tests.launchers.test_components import ARGUMENTS, FILES, LAUNCHERS

NIGHTLY = hasattr(dist, "torchrun")
SHARED = {"--config": "/shared/c.toml", "--data": "/shared/d", "--out": "/shared/o o"}


def render(name: str, scheduler: str, *options: str, **cfg: Any) -> Any:
    """What `torchx run -s SCHEDULER --dryrun` shows, as an object."""
    own = [SHARED.get(before, value) for before, value in zip(["", *ARGUMENTS[name]], ARGUMENTS[name], strict=False)]
    with get_runner() as runner:
        found = runner.dryrun_component(f"{LAUNCHERS / FILES[name]}.py:{name}", [*own, *options], scheduler, cfg=cfg)
    return found.request


def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """A cluster's `sinfo`, which torchx asks for Slurm's version and the memory of the partitions' nodes."""
    program = tmp_path / "sinfo"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "slurm {version}" || printf "PARTITION,MEMORY\\ngpu*,1160000\\n"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if NIGHTLY:
        from torchx.schedulers import slurm_scheduler

        slurm_scheduler.version.cache_clear()


@pytest.mark.parametrize("name", ["refresh", "run"])
@pytest.mark.parametrize("version", ["24.05.8", "24.11.5"])
def test_slurm_gets_whole_nodes_of_gpus(name: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    slurm(tmp_path, monkeypatch, version)
    options = ("-j", "2x8", "--gpu", "8", "--restarts", "5", "--retries", "4", "--env", "NCCL_SOCKET_IFNAME=ib0")
    request = render(name, "slurm", *options, partition="gpu", time="04:00:00")
    assert list(request.replicas) == [f"{name}-0", f"{name}-1"]
    for replica in request.replicas.values():
        asked = {option: value for option, value in replica.sbatch_opts.items() if not option.startswith("gpus")}
        wanted = {"requeue": None, "partition": "gpu", "time": "04:00:00", "ntasks-per-node": "1"}
        wanted |= {"cpus-per-task": "64", "mem": "524288"}
        if NIGHTLY and version == "24.05.8":
            wanted["ntasks"] = "1"
        assert asked == wanted
        per = "node" if NIGHTLY and version == "24.11.5" else "task"
        assert replica.sbatch_opts[f"gpus-per-{per}"] == "8"
        assert (
            replica.env.items()
            >= {
                "RECSYS_GPUS": "8",
                "NCCL_DEBUG": "WARN",
                "NCCL_SOCKET_IFNAME": "ib0",
                "OMP_WAIT_POLICY": "PASSIVE",
                "PET_MAX_RESTARTS": "5",
            }.items()
        )
        assert "OMP_NUM_THREADS" not in replica.env, "each rank takes its share of the CPUs that it finds"
        assert replica.srun_opts["kill-on-bad-exit"] == "1"
        command = replica.args[1]
        assert "--rdzv_endpoint ${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}:29500" in command
        assert "--nnodes 2 --nproc_per_node 8" in command
        assert "/shared/o o" in shlex.split(command)
    script = request.materialize()
    assert script.count("#SBATCH --job-name") == 2
    assert "export TORCHX_MAX_RETRIES=4\n" in script
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script


def test_slurm_on_cpus_is_asked_for_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    slurm(tmp_path, monkeypatch, "24.05.8")
    (replica,) = render("downstream", "slurm", "-j", "1x4").replicas.values()
    assert (replica.sbatch_opts["cpus-per-task"], replica.sbatch_opts["mem"]) == ("8", "32768")
    assert not any("gpu" in option for option in replica.sbatch_opts)
    assert not replica.env.keys() & {"RECSYS_GPUS", "NCCL_DEBUG"}
    assert "--rdzv_endpoint localhost:0" in replica.args[1]


@pytest.mark.parametrize("name", ["refresh", "run"])
def test_kubernetes_gets_a_volcano_job(name: str):
    job = volcano(name, "-j", "2x8", "--gpu", "8", "--shared", "recsys:/shared,/scratch/a:/a", "--retries", "4")
    assert job["spec"]["queue"] == "default"
    assert job["spec"]["maxRetry"] == 4
    assert [task["name"] for task in job["spec"]["tasks"]] == [f"{name}-0", f"{name}-1"]
    for number, task in enumerate(job["spec"]["tasks"]):
        assert (task["replicas"], task["maxRetry"]) == (1, 4)
        assert {"event": "PodFailed", "action": "RestartJob"} in task["policies"]
        assert {"event": "PodEvicted", "action": "RestartJob"} in task["policies"]
        pod = task["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "recsys-derm:cuda"
        limits = {"cpu": "64000m", "memory": "524288M", "nvidia.com/gpu": "8"}
        assert container["resources"]["limits"] == limits
        assert container["resources"]["requests"] == limits | {"cpu": "63900m", "memory": "523264M"}
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert environment.items() >= {"RECSYS_GPUS": "8", "NCCL_DEBUG": "WARN", "PET_MAX_RESTARTS": "3"}.items()
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted == {"dshm": "/dev/shm", "mount-0": "/shared", "mount-1": "/a"}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["mount-0"]["persistentVolumeClaim"] == {"claimName": "recsys"}
        assert volumes["mount-1"]["hostPath"] == {"path": "/scratch/a"}
        host = "TORCHX_RANK0_HOST" if number == 0 else f"VC_{name.upper()}_0_HOSTS"
        assert f"--rdzv_endpoint ${{{host}:=localhost}}:29500" in container["command"][2]
        assert container["ports"] == [{"containerPort": 29500, "name": "c10d"}]


def test_kubernetes_without_gpus_or_mounts():
    job = volcano("prior", "--cpu", "3", "--memory", "5000", "--image", "registry/recsys:1", "--retries", "0")
    (task,) = job["spec"]["tasks"]
    (container,) = task["template"]["spec"]["containers"]
    assert container["image"] == "registry/recsys:1"
    assert container["resources"]["limits"] == {"cpu": "3000m", "memory": "5000M"}
    assert "policies" not in task


def test_the_queue_has_a_default_and_no_image_is_built_on_the_way():
    from torchx.runner import config

    cfg: dict[str, Any] = {}
    config.apply(scheduler="kubernetes", cfg=cfg, dirs=[str(LAUNCHERS.parent)])
    assert cfg["queue"] == "default"
    workspace = config.get_config(prefix="cli", name="run", key="workspace", dirs=[str(LAUNCHERS.parent)])
    assert workspace == ""


def volcano(name: str, *options: str) -> dict[str, Any]:
    pytest.importorskip("kubernetes", reason="the extra `kubernetes` is not installed")
    from torchx.schedulers.kubernetes_scheduler import sanitize_for_serialization

    cfg = {"queue": "default"} | ({"validate_spec": False} if NIGHTLY else {})
    return json.loads(json.dumps(sanitize_for_serialization(render(name, "kubernetes", *options, **cfg).resource)))
