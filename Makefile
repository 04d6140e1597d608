# Two commands: `make test` (no phone, no rack needed beforehand) and `make device` (the matrix on the default rack).
VENV ?= .venv
PYTHON ?= python3
STAMP = $(VENV)/.installed

.PHONY: setup test device twins mutants lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	bash tools/setup.sh "$(PYTHON)" "$(VENV)"
	touch $@

# A file stays with one worker: phones without namespaces of their own see each other's processes.
test: $(STAMP)
	$(VENV)/bin/pytest -n 2 --dist loadfile tests/host

device: $(STAMP)
	$(VENV)/bin/pytest -m device -n 4

# One row of each architecture family at toy size, as CI runs it; all of them: pytest -m device --models all-twins.
twins: $(STAMP)
	$(VENV)/bin/pytest -m device -n 2 --models family-twins --modes kv --socs SM8650 --any-phone

# Whether the tests notice a changed line of the modules that decide an outcome; hours for all of them.
# Some of them: make mutants MODULES="harness/verdicts harness/gates.py" ARGS="--sample 30"
mutants: $(STAMP)
	$(VENV)/bin/python tools/mutants.py $(ARGS) $(MODULES)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV)
