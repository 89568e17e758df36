import logging


def _silence(logger: str | None, said: str) -> None:
    """Leave out what begins so: notices to the authors of TorchRec, or of what no user could change."""
    logging.getLogger(logger).addFilter(lambda record: not record.getMessage().startswith(said))


# Logged when TorchRec's modules are traced.
_silence("torch.fx._symbolic_trace", "is_fx_tracing will return true")
# Of its planner, where a table is data-parallel: such a one has no shards, and no cache.
_silence(None, "Sharding spec not found")
_silence("torchrec.distributed.utils", "Sharding Type is data_parallel")
# Of its 2D parallel: which ranks are a group.
_silence(None, "[2D]")
_silence(None, "[Connection] 2D")
