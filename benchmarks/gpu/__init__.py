"""What a first half hour on a GPU is for: does everything work there, and how fast is it.

    python -m benchmarks.gpu --list                      # the parts, and how long each may take
    python -m benchmarks.gpu                             # all of them: `make gpu`
    python -m benchmarks.gpu build first tests memcheck --seconds 570
    python -m benchmarks.gpu --rehearse                  # every part that can, tiny, on the CPU

Each part is a process with a limit of its own: one that fails, crashes or hangs does not stop the next, and one in
which torch's or FBGEMM's lookup ends the use of the GPU begins again without these. `results.jsonl` and `log.txt` in
the output folder ($OUT, else runs/gpu) are written as it goes, so that a run that is cut off leaves what it had;
`summary.txt` is written after each part. The exit code is 1 if a part failed, was cut off or had no time.

Where a command may take so long only, give `--seconds` and some of the parts: no part is begun without time for it, and
one that hangs takes no more than what the later ones can spare. Parts run in the order of `--list`, what matters most
first. Half an hour, of which starting the machine and copying take some minutes, at most ten minutes a command:

    python3 -m benchmarks.gpu build first --seconds 240
    python3 -m benchmarks.gpu tests memcheck graphs --seconds $((530 - SECONDS))
    python3 -m benchmarks.gpu grid pooled tiered --seconds $((480 - SECONDS))
    python3 -m benchmarks.gpu training swap ncu dims --seconds $((480 - SECONDS))

SECONDS are the shell's own, those that what came before in the same command took: TorchRec's folder, if it travels in
two pieces, goes with the first two commands and is put together in the second, whose tests and whose successors then
need `export PYTHONPATH=` that folder. The last command may have what is left of the half hour, less half a minute. The
libraries that `build` makes stay in embedding_store/, where later commands find them; where the machine is another one
by then, begin with `build` again. Leave libraries that were built elsewhere behind: what is measured would be what they
hold. Where $OUT is emptied before each command, keep what came back before the next one; the summary is also printed
last. No command leaves more than seven files there.

Needed are Python 3.11, torch 2.11, NumPy and PyArrow, and a C++20 compiler and nvcc for `build`, unless the two
libraries lie in embedding_store/ already. What else is missing (pytest, FBGEMM, TorchRec, compute-sanitizer, ncu) is
named beside what it leaves out. `training` needs TorchRec, tyro, rich and TensorBoard, and neither tomli-w nor DuckDB.
Nothing needs to be installed: PYTHONPATH=. does.
"""
