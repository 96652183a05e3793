# make pong: learn Pong. make check test: what every change must pass. Both first install into .venv.
PYTHON ?= python3
TORCH := 2.13.0
BIN := .venv/bin
STAMP := .venv/.installed
TOO_OLD := surefoot needs Python 3.11 or newer, and $(PYTHON) is %s: name another one, as in make PYTHON=python3.12 install

.PHONY: install pong test check long slow bench mutants site lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(TOO_OLD)" % sys.version.split()[0])'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install -r requirements.lock
	$(BIN)/pip install --no-deps -e .
	touch $@

pong: $(STAMP)
	$(BIN)/surefoot train pong

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check && $(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python scripts/lines.py

long: $(STAMP)  # tests of whole programs, a few seconds each
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "long and not slow"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m device

slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

bench: $(STAMP)  # how long the program takes to begin
	$(BIN)/python bench/start.py

mutants: $(STAMP)  # faults planted in the mathematics, one at a time: each must fail a test
	$(BIN)/python tests/mutants.py

site: $(STAMP)  # the documentation, in site/
	$(BIN)/python scripts/site.py

lock: $(STAMP)  # torch without its local version (+cpu): the same lock serves every platform's wheel
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --upgrade --upgrade-package torch==$(TORCH) \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --unsafe-package pip \
	  --strip-extras --extra dev --extra lesson --extra notebook --extra onnx --extra wandb --extra mlflow --extra tune --extra minari --output-file requirements.lock pyproject.toml
	sed -i.bak -e '/^surefoot @ /d' -e 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock && rm requirements.lock.bak

clean:
	rm -rf .venv dist site node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
