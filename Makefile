# Two targets do everything from a bare clone with only Python 3.11 to 3.13 present.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/study

.PHONY: study test bench clean

# Record, measure, replay, compare, validate and report on the embedded pair.
study: $(VENV)/.installed
	$(BIN)/gammalab study --out $(OUT)

# Lint, types, import contracts and the whole test suite.
test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Speed ratios, printed, never asserted.
bench: $(VENV)/.installed
	$(BIN)/python -m pytest -m benchmarks -s -q

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "GammaLab needs Python 3.11 to 3.13")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) out
