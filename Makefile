# Everyday commands. `make` alone lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(shell grep '^torch==' requirements.lock)
UV := $(shell grep '^uv==' requirements.lock)
DATASET ?= ml-1m
WORKERS ?= 3
TORCH_INDEX ?=
export TORCH_INDEX

export GX_ANALYTICS_ENABLED := false
# Every pipeline step is a process: compiled modules save seconds in each.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONWARNINGS ?= ignore::DeprecationWarning,ignore::FutureWarning

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-ab test test-long lint format clean

help: ## list the commands
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: $(READY) ## make .venv with the exact versions of requirements.lock (TORCH_INDEX=URL: torch from that index)

# Another index than the one torch came from: torch is installed again.
ifneq ($(TORCH_INDEX),)
ifneq ($(shell printf %s '$(subst ','\'',$(TORCH_INDEX))' | cksum),$(shell cat $(VENV)/.torch_index 2>/dev/null))
$(READY): again
endif
endif
.PHONY: again

# pip's warnings are no help here; its errors are shown (-qq).
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

$(READY): requirements.lock pyproject.toml
	@echo "make setup downloads $$(grep -c '==' requirements.lock) Python packages in the exact versions of requirements.lock, $(TORCH) among them,"
	@echo "and installs them into $(CURDIR)/$(VENV) (about 1.9 GB with the torch of PyPI); nothing outside but the caches of pip and uv."
	@if [ -n "$$TORCH_INDEX" ]; then printf %s "$$TORCH_INDEX" | sed -E 's#^#torch comes from #; s#//[^/@]*@#//#; s#$$#, all else from the index that pip is set to.#'; echo; \
	else echo "They come from the index that pip is set to; TORCH_INDEX=URL takes torch from another one."; fi
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "thinktwice needs Python 3.11 to 3.13, this is %d.%d: set PYTHON=/path/to/python3.11" % v)'
	@$(PYTHON) -m venv $(VENV)
	@if [ -n "$$TORCH_INDEX" ]; then $(PIP) --force-reinstall --no-deps --index-url "$$TORCH_INDEX" $(TORCH); fi
	@$(PIP) --constraint requirements.lock $(TORCH) $(UV)
	@grep -v '^torch==' requirements.lock > $(VENV)/without-torch.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode -r $(VENV)/without-torch.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@if [ -n "$$TORCH_INDEX" ]; then printf %s "$$TORCH_INDEX" | cksum > $(VENV)/.torch_index; fi
	@touch $@

demo: $(READY) ## train on MovieLens, serve the result, ask it a question (DATASET=ml-1m | ml-100k | sim)
	@$(BIN)/thinktwice demo --dataset $(DATASET)

demo-ab: $(READY) ## three live experiments on simulated users: a promotion, a roll-back, no decision
	@$(BIN)/thinktwice experiment demo

test: $(READY) ## run all tests (WORKERS=3 processes side by side; many wait for servers)
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-long: $(READY) ## run the simulations that take minutes
	@$(BIN)/python -m pytest -m long --timeout 3600

lint: $(READY) ## style, types, import contracts, declared dependencies
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/deptry thinktwice feature_repo components pipelines serving demo

format: $(READY) ## format the code
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

bench-against: $(READY) ## CPU time of a request now and in COMMIT (QUICK=1 for a short form)
	@COMMIT=$(COMMIT) $(BIN)/python -m benchmarks.against_commit

bench-%: $(READY) ## run benchmarks/NAME.py and write benchmarks/results/NAME.json (QUICK=1 for a short form)
	@$(BIN)/python -m benchmarks.$(subst -,_,$*)

clean: ## remove runs, models and caches of this project (not the virtual environment)
	@rm -rf .thinktwice .pytest_cache .mypy_cache .ruff_cache
