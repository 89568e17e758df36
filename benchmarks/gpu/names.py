"""What results are called. The runner knows these and nothing of torch, which takes seconds to import."""

EXPONENT = 1.05
"""Of Zipf's law."""
UNIFORM, ZIPF = "uniform", f"zipf {EXPONENT}"
"""Kinds of ids."""
COPY = "copy of as many bytes"
"""The variant that every cell has."""
COMPARED, NO_TIME = "lookups so far", "no time for"
"""In lines of `benchmarks.gpu.odd`."""
ALONE_VARIABLE = "GPU_BENCHMARK_ALONE"
"""Environment variable: set where other libraries' variants are left out, since one of them broke the device before."""
TABLES_VARIABLE = "GPU_BENCHMARK_TABLES"
"""Environment variable: the folder of the tables, which the parts share. Their runner makes it and deletes it."""
