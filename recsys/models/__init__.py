"""Networks and losses. They know nothing of ranks' number, files or the store; sharding lives in `recsys.train`."""
