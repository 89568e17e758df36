import logging

# Torch's notice to TorchRec's authors, which it logs when TorchRec's modules are traced: no user could change it.
logging.getLogger("torch.fx._symbolic_trace").addFilter(
    lambda record: not record.getMessage().startswith("is_fx_tracing will return true")
)
