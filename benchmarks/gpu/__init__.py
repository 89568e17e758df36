"""What a first half hour on a GPU is for: does everything work there, and how fast is it.

    python -m benchmarks.gpu --list                      # the parts, and how long each may take
    python -m benchmarks.gpu                             # all of them: `make gpu`
    python -m benchmarks.gpu build first tests memcheck --seconds 570
    python -m benchmarks.gpu --rehearse                  # every part that can, tiny, on the CPU

Each part is a process with a limit of its own: one that fails, crashes or hangs does not stop the next. `results.jsonl`
and `log.txt` in the output folder ($OUT, else runs/gpu) are written as it goes, so that a run that is cut off leaves
what it had; `summary.txt` is written after each part. The exit code is 1 if a part failed, was cut off or had no time.

Where one command may take ten minutes only, give `--seconds 570` and some of the parts: no part is begun without time
for it, and one that hangs takes no more than what the later ones can spare. Parts run in the order of `--list`, what
matters most first. Half an hour is `build first tests memcheck`, then `grid pooled tiered graphs`, then `training swap
ncu dims`. The libraries that `build` makes stay in embedding_store/, where later commands find them; where the machine
is another one by then, begin with `build` again. Leave libraries that were built elsewhere behind: what is measured
would be what they hold.

Needed are Python 3.11, torch 2.11, NumPy and PyArrow, and a C++20 compiler and nvcc for `build`, unless the two
libraries lie in embedding_store/ already. What else is missing (pytest, FBGEMM, TorchRec, compute-sanitizer, ncu) is
named beside what it leaves out. `training` needs TorchRec, tyro, rich and TensorBoard, and neither tomli-w nor DuckDB.
Nothing needs to be installed: PYTHONPATH=. does.
"""
