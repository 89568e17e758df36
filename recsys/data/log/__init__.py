"""A raw log of actions -> events by day, their schema and a study that is ready to run: `prepare` has the whole way."""
