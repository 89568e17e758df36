import logging

# Torch's notice to TorchRec's authors, which it logs when TorchRec's modules are traced: no user could change it.
logging.getLogger("torch.fx._symbolic_trace").addFilter(
    lambda record: not record.getMessage().startswith("is_fx_tracing will return true")
)

# And of its planner, where a table is data-parallel: such a one has no shards, and no cache.
for _name, _said in (
    (None, "Sharding spec not found"),
    ("torchrec.distributed.utils", "Sharding Type is data_parallel"),
):
    logging.getLogger(_name).addFilter(lambda record, said=_said: not record.getMessage().startswith(said))
