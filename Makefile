# Every target sets up what it needs: `make demo` (or `make demo FULL=1`, for longer) and `make test` work on a fresh
# clone. FLAVOUR=cpu or cuda overrides the choice that is otherwise made by looking for a GPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLAVOUR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
STAMP := $(VENV)/.installed-$(FLAVOUR)

NATIVE := CMakeLists.txt $(shell find embedding_store/csrc -type f)

.PHONY: install demo test nightly sanitize gpu lint format clean

install: $(STAMP)

# torch goes first: with it in place nothing else pulls in another build of it. On a CPU machine TorchRec is installed
# without its dependencies, because it asks for fbgemm-gpu, the CUDA build; pyproject.toml names the rest of them. The
# native library is built against the torch that is installed, hence no build isolation. Of the editable install only the
# path to this folder stays: the list of modules that comes with it would hide those that a later `git pull` moves.
$(STAMP): pyproject.toml $(NATIVE)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q torch==2.13.0
ifeq ($(FLAVOUR),cpu)
	$(BIN)/pip install -q --no-deps torchrec==1.8.0
endif
	$(BIN)/pip install -q 'scikit-build-core>=0.11,<1' 'cmake>=3.24,<5' 'ninja>=1.11,<2'
	$(BIN)/pip install -q --no-build-isolation -e '.[$(FLAVOUR),dev]'
	sed -i '/^import /d' $(VENV)/lib/python3*/site-packages/_recsys_derm_editable.pth
ifeq ($(FLAVOUR),cpu)
	@echo 'If pip says that torchrec requires fbgemm-gpu: so it does, but fbgemm-gpu-cpu is what a CPU machine needs.'
endif
	touch $@

demo: install
	$(BIN)/recsys demo $(if $(FULL),--full --out runs/demo-full,--out runs/demo)

# Files of tests side by side, a process a core and one more, since many wait for ranks, in the order of
# tests/conftest.py; more than four would mostly wait for each other's. Bytecode is kept even where the shell says
# otherwise: each of a few hundred processes would compile the whole package anew. LONG=1: those marked `long` too.
test: export PYTHONDONTWRITEBYTECODE :=
test: export LONG := $(LONG)
test: install
	$(BIN)/pytest -n $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))') --dist loadfile \
		--no-loadscope-reorder $(if $(LONG),-m 'long or not long')

# The components once more, with a nightly of torchx, which asks Slurm 24.11 for GPUs as that wants it. It needs no torch.
NIGHTLY := build/torchx-nightly

nightly:
	test -x $(NIGHTLY)/bin/pytest || $(PYTHON) -m venv $(NIGHTLY)
	$(NIGHTLY)/bin/pip install -q 'torchx-nightly[kubernetes]==2026.10.26' 'pytest>=8,<10' 'hypothesis>=6.100,<7'
	$(NIGHTLY)/bin/python -m pytest tests/launchers/test_components.py tests/launchers/test_requests.py

# The native library once more, with the address and undefined-behaviour sanitizers, under the tests that use it most.
# A finding ends the process, and with it the target. libstdc++ is loaded early so that exceptions pass the sanitizer;
# Python never frees all it has, hence no search for leaks. The sanitizer's own allocator does not survive a fork amid
# threads. An allocation that is too large fails there as elsewhere, which tests ask for.
SANITIZED := build/sanitize
SANITIZED_TESTS := $(addprefix tests/embedding_store/,$(addprefix native/test_,building.py gate.py ops.py ops_refused.py large_results.py mapping.py lookup_history.py nearest.py) read/test_table.py format/test_hostile.py format/test_hostile_index.py)
RUNTIMES := libasan.so libubsan.so libstdc++.so

sanitize: install
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B $(SANITIZED) -G Ninja -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" \
		-DEMBEDDING_STORE_SANITIZE=ON
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build $(SANITIZED) --target embedding_store
	LD_PRELOAD="$(foreach runtime,$(RUNTIMES),$$(c++ -print-file-name=$(runtime)))" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
		EMBEDDING_STORE_LIBRARY="$(CURDIR)/$(SANITIZED)/libembedding_store.so" \
		$(BIN)/pytest --capture=sys -p no:faulthandler -k 'not opcheck and not fork_amid' $(SANITIZED_TESTS)

# What a GPU is for: its tests, memcheck, benchmarks, trainings; `make gpu PARTS="build first tests"` for some of them.
# Nothing is installed, since a machine that is lent for half an hour may have no network: see benchmarks/gpu/__init__.py.
gpu:
	PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m benchmarks.gpu $(PARTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info embedding_store/*.so
