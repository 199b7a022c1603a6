PYTHON ?= python3
BIN := .venv/bin
# a process per core, each of one thread
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-only test-slow coverage lint docs wheel upstream clean

demo: .venv/installed ## diarize the sample conversation that ships in pyannote.audio
	$(BIN)/pyannote-prune demo

test: lint test-only ## lint and all quick tests

test-only: .venv/installed ## all quick tests
	$(PYTEST)

test-slow: .venv/installed ## tests of minutes: the wheel, a thousand recordings
	$(PYTEST) -m 'slow and not cuda'

coverage: .venv/installed ## lines that quick tests do not reach
	$(PYTEST) --cov --cov-report term-missing

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

wheel: .venv/installed ## wheel and source, into dist/
	$(BIN)/python -m hatchling build

upstream: .venv/installed ## pyannote.audio of its main branch, instead of a release
	$(BIN)/uv pip install --quiet --python $(BIN)/python 'pyannote.audio @ git+https://github.com/pyannote/pyannote-audio'

# uv resolves and installs in seconds; pip is only used to get it. Compiled once, since tests start many processes
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	touch $@

.venv/docs: .venv/installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv site
