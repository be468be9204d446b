# Everything a developer runs. Each target brings what it needs; a second run does only what changed.
#
# Needs Python >= 3.11, a C++ compiler and make. The environment is .venv: Lattice as an editable install (a path entry for
# src/), the development tools, and cmake and ninja, so the machine's own do not matter. The native core is built by CMake
# in build/native, which links the libraries straight into src/lattice/backends/cpu, where the loader finds them in a
# wheel too. An edit of Python needs nothing; after an edit of C++ any target below rebuilds what depends on it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# The first Python that is new enough; override with make PYTHON=/path/to/python.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
CMAKE := $(CURDIR)/$(BIN)/cmake
GENERATOR := -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
PYTEST_ARGS ?=
BENCH_ARGS ?=
INPUTS ?= 100000

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help setup native demo test fuzz check lint types sizes rules warnings clang windows \
	check-arm sanitize cases wheel bench gpu-test gpu-bench format clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.stamp: pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed; name it with make PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

build/native/.stamp: $(VENV)/.stamp
	$(CMAKE) -S . -B build/native $(GENERATOR) -DLATTICE_INPLACE=ON >/dev/null
	@touch $@

# Always asks ninja, which knows every header and also sees files that came or went.
native: build/native/.stamp
	@$(CMAKE) --build build/native -- --quiet

setup: native  ## the environment and the native core

demo: setup  ## embed, compare and chat on real models
	$(BIN)/python examples/demo.py

test: setup  ## all tests, real models included; PYTEST_ARGS='-k name' narrows
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

fuzz: setup  ## hostile inputs for every parser of files from outside; INPUTS=1000000 for each
	$(BIN)/python tests/fuzz/run.py --inputs $(INPUTS)

check: lint types sizes rules warnings clang windows  ## style, types, sizes, import direction, public names, C++ warnings

lint: $(VENV)/.stamp
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet || { $(BIN)/ruff format --check; exit 1; }

types: $(VENV)/.stamp
	$(BIN)/mypy

sizes: $(VENV)/.stamp  ## lines of every source file against the budgets
	$(BIN)/python tools/sizes.py

rules: $(VENV)/.stamp
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_public.py

# $(call core,FOLDER,OPTIONS): configure and build libraries and runners in build/FOLDER. All targets of the processor
# family, also those that this machine cannot run, and optimised unless OPTIONS say otherwise: many warnings need it.
core = $(CMAKE) -S . -B build/$(1) $(GENERATOR) -DLATTICE_WERROR=ON -DLATTICE_RUNNER=ON $(2) >/dev/null && \
	$(CMAKE) --build build/$(1) -- --quiet

warnings: $(VENV)/.stamp
	@echo "the native core with $$($${CXX:-c++} --version | head -n 1)"
	@$(call core,warnings)
	@if test "$$(uname)" = Linux; then $(BIN)/python tools/exports.py objdump build/warnings/*.so; fi

# Compilers that a developer may not have: one line says what was left out. CI has them all.
clang: $(VENV)/.stamp
	@if command -v clang++ >/dev/null; then \
		echo "the native core with $$(clang++ --version | head -n 1)"; \
		$(call core,clang,-DCMAKE_CXX_COMPILER=clang++); \
	else echo "not compiled with Clang: clang++ is missing (Debian: clang)"; fi

# For Windows. Debian keeps two variants apart; only the one with POSIX threads has std::thread in GCC 12.
MINGW ?= $(firstword $(foreach c,x86_64-w64-mingw32-g++-posix x86_64-w64-mingw32-g++,$(shell command -v $(c))))

windows: $(VENV)/.stamp
	@if test -n "$(MINGW)"; then \
		echo "the native core for Windows with $$($(MINGW) --version | head -n 1)"; \
		$(call core,windows,-DCMAKE_SYSTEM_NAME=Windows -DCMAKE_SYSTEM_PROCESSOR=x86_64 -DCMAKE_CXX_COMPILER=$(MINGW)) && \
		$(BIN)/python tools/exports.py x86_64-w64-mingw32-objdump build/windows/*.dll; \
	else echo "not compiled for Windows: x86_64-w64-mingw32-g++ is missing (Debian: g++-mingw-w64-x86-64-posix)"; fi

# Every op's samples and every weight format, for the runner of tests/native: the kernels without Python.
CASES := build/native_cases.bin
cases: $(VENV)/.stamp
	@$(BIN)/python tests/native_cases.py $(CASES)

# The core for 64-bit ARM, and all cases on an emulated processor.
ARM := aarch64-linux-gnu
check-arm: cases  ## the kernels for 64-bit ARM, under qemu
	@missing=; \
	command -v $(ARM)-g++ >/dev/null || missing="$$missing g++-$(ARM)"; \
	command -v qemu-aarch64 >/dev/null || missing="$$missing qemu-user"; \
	test -z "$$missing" || { echo "make: check-arm needs the Debian packages$$missing" >&2; exit 1; }
	@echo "the native core with $$($(ARM)-g++ --version | head -n 1)"
	@$(call core,arm,-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM)-g++)
	@$(BIN)/python tools/exports.py $(ARM)-objdump build/arm/*.so
	@for target in scalar neon; do \
		qemu-aarch64 -cpu max -L /usr/$(ARM) build/arm/lattice_runner_$$target $(CASES) || exit 1; done

# All cases with every access to memory and every undefined operation watched. AVX-512 would need a machine that has it.
MACHINE := $(shell uname -m)
SANITIZED := scalar $(if $(filter x86_64 amd64,$(MACHINE)),avx2) $(if $(filter aarch64 arm64,$(MACHINE)),neon)
sanitize: cases  ## the kernels under the address and undefined-behaviour sanitizers
	@$(call core,sanitize,-DLATTICE_SANITIZE=ON -DLATTICE_TARGETS="$$(echo $(SANITIZED) | tr ' ' ';')")
	@for target in $(SANITIZED); do build/sanitize/lattice_runner_$$target $(CASES) || exit 1; done

wheel: $(VENV)/.stamp  ## the wheel that users install, built from nothing and checked
	rm -rf build/wheel
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python tools/wheel.py build/wheel

gpu-test: setup  ## the tests of the GPU backend on this machine's card
	LATTICE_TEST_CARD=1 $(BIN)/python -m pytest -q tests/backends/test_wgpu*.py

gpu-bench: setup  ## decode and prefill on this machine's card, a random model; BENCH_ARGS is handed on
	$(BIN)/python -m benches gpu --profile $(BENCH_ARGS)

bench: setup  ## speed beside the rivals; BENCH_ARGS is handed on
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benches $(BENCH_ARGS)

format: $(VENV)/.stamp  ## rewrite Python files in the one format
	$(BIN)/ruff check --quiet --fix
	$(BIN)/ruff format

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f src/lattice/backends/cpu/*.so src/lattice/backends/cpu/*.dylib src/lattice/backends/cpu/*.dll
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
