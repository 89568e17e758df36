# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone. FLAVOUR=cpu or cuda overrides
# the choice that is otherwise made by looking for a GPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLAVOUR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
STAMP := $(VENV)/.installed-$(FLAVOUR)

.PHONY: install demo test lint format clean

install: $(STAMP)

# torch goes first: with it in place nothing else pulls in another build of it. On a CPU machine TorchRec is installed
# without its dependencies, because it asks for fbgemm-gpu, the CUDA build; pyproject.toml names the rest of them.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q torch==2.13.0
ifeq ($(FLAVOUR),cpu)
	$(BIN)/pip install -q --no-deps torchrec==1.8.0
endif
	$(BIN)/pip install -q -e '.[$(FLAVOUR),dev]'
ifeq ($(FLAVOUR),cpu)
	@echo 'If pip says that torchrec requires fbgemm-gpu: so it does, but fbgemm-gpu-cpu is what a CPU machine needs.'
endif
	touch $@

demo: install
	$(BIN)/recsys demo --out runs/demo

test: install
	$(BIN)/pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
