"""Training on any number of ranks: process group, sharding plan, optimizer, loop, checkpoint, metrics."""
