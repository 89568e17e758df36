"""One torchx component a job. They import only torchx: a job is a command line of `recsys`."""
