"""One torchx component a job. They import torchx alone: a job is a command line of `recsys`."""
