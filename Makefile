# The two commands of the README, and the rest. Everything installs itself into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two processes: the machines that this is developed on have two cores, and more would only wait.
WORKERS ?= 2

.PHONY: setup demo serve test test-gpu lint docs bench soak clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,postgres,redis]'
	touch $@

demo: setup  ## start the server, do its main work on real input, check it, stop it
	$(BIN)/serai demo

serve: setup  ## run the server in the foreground
	$(BIN)/serai serve

test: setup  ## every test that this machine can run; what is skipped is said at the end
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal; code=$$?; test $$code -eq 1 || exit $$code; \
	echo "=== What failed runs once more, by itself. What passes now is UNSTEADY, a defect to mend. ==="; \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none -v

test-gpu: setup  ## the tests that need a CUDA device, with their figures
	$(BIN)/python -m pytest -m gpu tests/gpu

soak: setup  ## the long form of the fault tests (30 minutes)
	$(BIN)/python tests/faults/soak_jobs.py --minutes 30

lint: setup  ## formatting, style, types, layers
	$(BIN)/ruff format --check src tests benchmarks starter
	$(BIN)/ruff check src tests benchmarks starter
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## write what is generated from the code: the reference, serai.toml.example
	$(BIN)/python docs/generate.py

bench: setup  ## the benchmarks; prints tables, writes JSON into out/
	for name in startup registry jobs runtime gateway gallery images chat_cpu; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) out build dist
