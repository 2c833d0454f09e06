# Thin: every target hands over to packaging/setup.sh and to the tools in .venv.
#
#   make detection NORM=bn SEED=0..2 PRESET=mini DATA="/a folder" GPUS=2 ARGS="batch.micro=1"
#
# A task's variables reach `normbench run` only when set; ARGS is shell text, quoted as such.

TASKS := detection segmentation classification pointcloud

NORM ?= gn_ws

# Handed over by the environment, word for word: the shell never parses what is in them.
override NORM := $(value NORM)
override SEED := $(value SEED)
override PRESET := $(value PRESET)
override DATA := $(value DATA)
override GPUS := $(value GPUS)
override JOBS := $(value JOBS)
export NORM SEED PRESET DATA GPUS JOBS

.PHONY: help setup $(TASKS) reproduce-all-tables report bench test chaos check docs clean

help:  ## list the targets (default)
	@awk -F ':.*## ' '/^[^\t#].*:.*## / { sub(/^\$$\(TASKS\)/, "$(TASKS)", $$1); printf "%-20s %s\n", $$1, $$2 }' Makefile

setup:  ## build .venv (about 6 GB); no-op when it is up to date
	@packaging/setup.sh

$(TASKS): setup  ## run the task: NORM (gn_ws) SEED PRESET DATA GPUS ARGS
	@exec .venv/bin/normbench run $@ $${NORM:+"norm=$$NORM"} $${SEED:+"seed=$$SEED"} \
		$${PRESET:+"preset=$$PRESET"} $${DATA:+"data=$$DATA"} $${GPUS:+"devices=$$GPUS"} $(ARGS)

reproduce-all-tables: setup  ## all tables of PRESET (mini): SEED DATA JOBS ARGS
	@exec .venv/bin/normbench reproduce --all $${PRESET:+"preset=$$PRESET"} $${SEED:+"seed=$$SEED"} \
		$${DATA:+"data=$$DATA"} $${JOBS:+--jobs "$$JOBS"} $(ARGS)

report: setup  ## rebuild the CSV files, tables and figures from the records; ARGS
	@exec .venv/bin/normbench report $(ARGS)

bench: setup  ## measure speed and memory beside named peers; ARGS="loop --rounds 9"
	@exec .venv/bin/python -m benchmarks $(ARGS)

test: setup  ## run the tests; ARGS="-k foo" goes to pytest
	@exec .venv/bin/pytest -n auto --maxprocesses 4 --dist worksteal \
		--durations=15 --durations-min=0.5 $(ARGS)

chaos: setup  ## kill runs and fuzz inputs, some ten minutes; ARGS="--kills 15 --inputs 300"
	@exec .venv/bin/python -m tests.chaos $(ARGS)

check: setup  ## ruff and mypy
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

docs: setup  ## build the documentation site in build/docs; a broken link fails
	@uv=.uv/bin/uv; [ -x $$uv ] || uv=uv; \
		exec $$uv run --isolated --locked --only-group docs sphinx-build -q -W docs build/docs

clean:  ## remove the environment and the caches, never results or data
	rm -rf .venv .uv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
