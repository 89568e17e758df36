"""Writing a snapshot: rows, index, statistics, and the commit."""
