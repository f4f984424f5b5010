# Two commands on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadgroup  # a process per core

AVX2 := ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2

SANITIZERS = $(shell g++ -print-file-name=libasan.so 2>/dev/null) $(shell g++ -print-file-name=libubsan.so 2>/dev/null)

TRANSFORMERS := 5.19.0 5.24.0
SEAM := tests/models tests/test_same_tokens.py
TORCH := torch==2.9.1
MEETS_TORCH := tests/test_same_tokens.py tests/cache tests/engine tests/models tests/native

.PHONY: run test lint types tests test-fast test-avx2 test-sanitized test-targets test-versions test-torch test-long check coverage slow format docs docs-site wheel clean

run: .venv/installed  ## set everything up and write a text that is longer than its budget of 128 tokens
	$(BIN)/scope generate --prompt-file examples/prompts/bread.txt --budget 128 --seed 2

test: .venv/installed check  ## set everything up, then lint, types and tests

check: lint types tests

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

tests: .venv/installed
	$(PYTEST) --durations=25

test-fast: .venv/installed  ## what to run between two edits: every quick test, in under a minute
	$(PYTEST) -m "not slow and not long and not gpu"

test-avx2: .venv/installed  ## the tests that compute, as a CPU without AVX-512 computes
	$(AVX2) $(PYTEST) -m "numeric and not once and not long and not gpu"

test-sanitized: .venv/installed  ## the native step's tests with a library that finds its own faults: g++'s sanitizers
	@if [ ! -f "$(firstword $(SANITIZERS))" ]; then echo "no sanitizers: g++ has none here" >&2; else \
		LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		CXX="g++ -g1 -fno-var-tracking -fsanitize=address,undefined -fno-sanitize-recover=undefined" SCOPE_CACHE=build/sanitized \
		$(PYTEST) -p no:cacheprovider -m "not real_model and not slow and not once" \
		--ignore tests/native/test_build.py tests/native; fi

test-targets: .venv/installed  ## the native library compiles for ARM, macOS and Windows; nothing of it runs. 400 MB
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target build/zig ziglang
	PYTHONPATH=build/zig $(PYTEST) -p no:cacheprovider tests/native/test_targets.py

test-versions: .venv/installed  ## what meets transformers, with both ends of the range that pyproject.toml allows
	for version in $(TRANSFORMERS); do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
			--target build/transformers/$$version transformers==$$version && \
		PYTHONPATH=build/transformers/$$version $(PYTEST) -p no:cacheprovider $(SEAM) || exit 1; \
	done

test-torch: .venv/installed  ## what meets PyTorch, with the oldest that pyproject.toml allows; TORCH=torch: the newest. GBs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target build/torch/$(TORCH) $(TORCH)
	PYTHONPATH=build/torch/$(TORCH) $(PYTEST) -p no:cacheprovider -m "not slow and not long and not gpu" $(MEETS_TORCH)

test-long: .venv/installed  ## what takes minutes: thousands of tokens of the embedded model
	$(BIN)/pytest -q -m "long and not gpu"

coverage: .venv/installed  ## the lines that no test runs, without those that only other processes run
	$(PYTEST) --cov scope_cli --cov-report json:build/coverage.json --cov-report term-missing:skip-covered
	$(BIN)/python -m tests.helpers.covered build/coverage.json

slow: .venv/installed  ## find anew which tests are slow, on a machine that does nothing else
	rm -f .pytest_cache/cost
	COST=.pytest_cache/cost $(PYTEST) -p tests.helpers.cost
	$(BIN)/python -m tests.helpers.cost .pytest_cache/cost > tests/slow.txt

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed  ## write the generated pages of docs/ anew
	$(BIN)/python docs/build.py

docs-site: .venv/installed docs  ## the site, into build/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	$(BIN)/mkdocs build --strict --quiet

wheel:  ## dist/*.whl, installed into an empty environment and used from there
	PYTHON=$(PYTHON) .ci/wheel $(PACKAGES)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
