"""TorchRec's own machinery accepts the task modules: sharding, and the train pipeline's shallow trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.model_parallel import DistributedModelParallel, get_default_sharders
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardedModule, ShardingType

from recsys.config import LossConfig, NetworkConfig
from recsys.config.ranker import RANKERS
from recsys.data.negatives import with_negatives
from recsys.models.derm import DERM
from recsys.models.losses import DermTask, ItemFrequencies
from recsys.models.ranker import RankerTask
from recsys.models.rankers import build_ranker
from recsys.train.tables import draw_tables
from tests.distributed import run_ranks
from tests.recsys.models.support import SMALL, full_schema, random_batch

CPU = torch.device("cpu")


def _task(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind in RANKERS:
        config = NetworkConfig(kind=kind, embedding_dim=8, hidden=(16, 8), dropout=0)
        return RankerTask(build_ranker(full_schema(), config, tasks=2))
    tasks = ("click", "buy")
    frequencies = ItemFrequencies.from_counts(torch.arange(30), torch.arange(1, 31))
    return DermTask(DERM(full_schema(), SMALL, tasks), LossConfig(), tasks, frequencies, items=30)


def _shard(task: nn.Module, constrained: tuple[str, ...] = ()) -> DistributedModelParallel:
    sharders = get_default_sharders()
    row_wise = ParameterConstraints(
        sharding_types=[ShardingType.ROW_WISE.value], compute_kernels=[EmbeddingComputeKernel.FUSED.value]
    )
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=dist.get_world_size(), compute_device="cpu"),
        constraints={table: row_wise for table in constrained},
    )
    plan = planner.collective_plan(task, sharders, dist.group.WORLD)
    return DistributedModelParallel(task, device=CPU, plan=plan, sharders=sharders)


def _train_all(*kinds: str) -> list[dict[str, Any]]:
    return [_train(kind) for kind in kinds]


def _train(kind: str, steps: int = 3) -> dict[str, Any]:
    seeds = [10 * dist.get_rank() + step for step in range(steps)]
    batches = [random_batch(full_schema(), 16, seed) for seed in seeds]
    if kind == "mixed":
        items = [random_batch(full_schema(), 5, seed + 100, owners=("item",)) for seed in seeds]
        batches = [with_negatives(*pair) for pair in zip(batches, items, strict=True)]
    plain = draw_tables(_task(kind), 0)
    expected, _ = plain(copy.deepcopy(batches[0]))
    model = _shard(_task(kind), () if kind in RANKERS else ("user_history",))
    model.module.load_state_dict(plain.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses: list[float] = []

    def forward(batch: Any) -> Any:
        loss, output = model(batch)
        losses.append(loss.item())
        return loss, output

    pipeline = TrainPipelineSparseDist(model, optimizer, CPU, custom_model_fwd=forward)
    stream = iter(batches)
    for _ in range(steps):
        output = pipeline.progress(stream)
    sharded = {name for name, module in model.module.named_modules() if isinstance(module, ShardedModule)}
    pipelined = {module.forward._name for module in pipeline._pipelined_modules}
    return {
        "expected": expected.item(),
        "losses": losses,
        "sharded": sharded,
        "pipelined": pipelined,
        "logits": output.logits.shape,
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_table_is_pipelined_and_the_loss_is_that_of_the_plain_model(ranks):
    derm = {f"model.{x}" for x in ("user.tokens.bags", "user.tokens.sequences", "item.tokens.bags")}
    derm.add("model.interaction.tokens.bags")
    tokens = {"model.tokens.bags", "model.tokens.sequences"}
    for results in run_ranks(_train_all, ranks, "derm", "mixed", *RANKERS):
        for result, tables in zip(results, (derm, derm, {"model.bags"}, tokens, tokens), strict=True):
            assert result["pipelined"] == result["sharded"] == tables
            assert result["losses"][0] == pytest.approx(result["expected"], rel=1e-5)
            assert len(result["losses"]) == 3
            assert result["logits"] == (16, 2)
