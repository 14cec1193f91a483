# Needs make and Python 3.11 or newer; everything else goes into $(VENV). `make help` lists what there is.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint
PIP := $(BIN)/python $(INSTALL) constraints.txt
CODE := $(wildcard src tests tests_vision benchmarks examples)
VISION := .venv-vision
FUZZ := .venv-fuzz
PEERS := .venv-peers
RUNS ?= 100000
MUTANTS ?= 300

.DEFAULT_GOAL := help
.PHONY: help demo test test-vision torture fuzz mutants peers docs format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## install into .venv, then quantize a small network from start to finish
	$(BIN)/octavo demo

test: $(VENV)/.dev  ## every check: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(CODE)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal

test-vision: $(VISION)/.installed  ## the recipes of INQ's paper on torchvision's networks, into .venv-vision: several gigabytes
	$(VISION)/bin/python -m pytest tests_vision

fuzz: $(FUZZ)/.installed  ## packed files and recipes made to do harm, RUNS=100000 of each; what is found is in .fuzz
	mkdir -p .fuzz/packed .fuzz/yaml
	cd .fuzz && ../$(FUZZ)/bin/python ../tests/hostile/fuzz.py packed packed ../tests/hostile/corpus/packed -runs=$(RUNS)
	cd .fuzz && ../$(FUZZ)/bin/python ../tests/hostile/fuzz.py yaml yaml ../tests/hostile/corpus/yaml -runs=$(RUNS)

mutants: $(VENV)/.mutants  ## break the code in MUTANTS=300 places, one after the other, and see whether the tests notice
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(MUTANTS)

torture: $(VENV)/.dev  ## kill runs and searches, and let each call of saving fail; writes docs/reliability.md's tables
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py

peers: $(PEERS)/.installed  ## other packages beside octavo, on two networks of CIFAR-10: half an hour; fills tables of docs/results.md
	OMP_NUM_THREADS=1 $(PEERS)/bin/python benchmarks/peers/measure.py
	OMP_NUM_THREADS=1 $(PEERS)/bin/python benchmarks/peers/cabac.py

docs: $(VENV)/.dev  ## build the pages of docs/ and the API reference into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo 'open site/index.html; with a search box: $(BIN)/python -m http.server -d site'

format: $(VENV)/.dev  ## format the code and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, the caches and what was built
	rm -rf $(VENV) $(VISION) $(FUZZ) $(PEERS) .fuzz build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tests_vision -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp files say what is installed, so that nothing is installed twice.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing octavo into $(VENV); torch is large, the first time takes a while'
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing octavo and the tools for its checks into $(VENV)'
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.mutants: $(VENV)/.dev
	$(PIP) --editable '.[dev,mutants]'
	@touch $@

# torchvision imports only beside the torch that it was built for: an environment and a list of versions of its own.
$(VISION)/.installed: pyproject.toml constraints-vision.txt
	@echo 'installing octavo with torchvision and timm into $(VISION)'
	$(PYTHON) -m venv $(VISION)
	$(VISION)/bin/python $(INSTALL) constraints-vision.txt --editable '.[vision]' pytest
	@touch $@

# Packages that octavo is compared with, some of which require other versions than they need.
$(PEERS)/.installed: constraints.txt benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python $(INSTALL) constraints.txt --editable '.[small,demo,hf]' matplotlib
	$(PEERS)/bin/python -m pip install --quiet --no-deps --requirement benchmarks/peers/requirements.txt
	@touch $@

# The fuzzer instruments the code as it is imported: an environment of its own.
$(FUZZ)/.installed: pyproject.toml constraints.txt
	@echo 'installing octavo with atheris into $(FUZZ)'
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/python $(INSTALL) constraints.txt --editable '.[fuzz]'
	@touch $@
