# Every target carries its help line; `make` alone prints them.
.DEFAULT_GOAL := help
.PHONY: help setup report lab serve test test-fast bench lint format clean
SHELL := /bin/bash
PYTHON ?= python3
PRESET ?= demo
DATA ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(READY) ## create .venv and install what requirements.txt pins

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	touch $@

report: setup ## run the notebooks, write report/PRESET/report.html; PRESET=quick DATA=path/to/images for real films
	$(BIN)/pneumo report --preset $(PRESET) $(if $(DATA),--data "$(DATA)") $(ARGS)

lab: setup ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks

serve: setup ## start the diagnosis service on http://127.0.0.1:8000; ARGS="--run runs/quick" for a model of your own
	$(BIN)/pneumo serve $(ARGS)

test: setup ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: setup ## run the tests that train nothing and start no browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

bench: setup ## time training and inference beside the usual ways; needs pip install -e '.[bench]' for two of them
	$(BIN)/pneumo benchmark $(ARGS)

lint: setup ## check style, notebooks included
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: setup ## put code and notebooks into the one style
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean: ## delete what the commands made: environment, caches, runs, reports
	rm -rf $(VENV) cache runs report build .pytest_cache .ruff_cache *.egg-info
