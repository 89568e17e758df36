"""Reading: snapshots, tables on the CPU and on devices, lookups as of a time."""
