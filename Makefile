# make run [STUDY=config/studies/x.yaml] [PROFILE=slurm]   set up, run a study, print its table
# make test [TESTS=tests/config]                           set up, run the tests
# make snapshot [STUDY=…]                                  keep a finished study's tables and figures
# make studies [STUDIES="ssa sspe"]                        run and keep the default study and its ablations
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test setup snapshot studies

PYTHON ?= python3
STUDY ?= config/default.yaml
STUDIES ?= table4 encoder sspe sspe_size ssa superpixels granularity cross_domain token_order seeds pretraining learning_rate
TESTS ?= tests
BIN := .venv/bin
# The stamp lies in .venv and is newer than what it was made from: nothing is installed twice.
STAMP := .venv/.installed

help:
	@sed -n 's/^# \(make\)/\1/p' Makefile

run: $(STAMP)
	@echo "run: $(STUDY)"
	@$(BIN)/svp run $(STUDY) $(if $(PROFILE),--profile $(PROFILE))

test: $(STAMP)
	@echo "test: $(TESTS)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

snapshot: $(STAMP)
	@$(BIN)/svp snapshot $(STUDY) --command "make run STUDY=$(STUDY)"

# The default study comes first: data, pretrained models, superpixels and features are then there for all.
studies: $(STAMP)
	@for study in default $(STUDIES); do \
		file=config/studies/$$study.yaml; test $$study != default || file=config/default.yaml; \
		$(MAKE) --no-print-directory run STUDY=$$file && $(MAKE) --no-print-directory snapshot STUDY=$$file; \
	done

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "setup: $(PYTHON) is older than 3.11; name another: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "setup: creating .venv"; $(PYTHON) -m venv .venv; }
	@echo "setup: installing the pinned packages (5 GB; about two minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[workflow,dev]' \
		2> >(grep -v 'is ignored' >&2)
	@touch $@
	@echo "setup: done"
