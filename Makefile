# Two commands on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-long check format docs clean

run: .venv/installed  ## set everything up and summarise the sample report with the embedded model
	$(BIN)/scope generate --prompt-file examples/report.txt --budget 2048 --stop-on-loop

test: .venv/installed check  ## set everything up, then lint, types and tests

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto  # a process per core

test-long: .venv/installed  ## what takes minutes: thousands of tokens of the embedded model
	$(BIN)/pytest -q -m "long and not gpu"

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed  ## write the generated pages of docs/ anew
	$(BIN)/python docs/build.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
