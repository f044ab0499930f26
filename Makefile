PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO := runs/demo
SEEDS ?= 0 1 2

export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help demo test test-slow lint format type bench table clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version)'
	@echo "Setting up .venv: downloading and installing packages, a few minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## Train source-only and DACS on the embedded benchmark and show the report (about 8 minutes)
	@echo "1/3  source only: training on labelled game-like scenes"
	@$(BIN)/lightning-uda fit --config configs/demo/source_only.yaml
	@echo "2/3  DACS: the same, and camera-like scenes without labels"
	@$(BIN)/lightning-uda fit --config configs/demo/dacs.yaml
	@echo "3/3  report: IoU on camera-like validation scenes"
	@$(BIN)/lightning-uda report $(DEMO)/source_only $(DEMO)/dacs --output $(DEMO)/report.html

test: $(READY)  ## Run the tests
	$(BIN)/python -m pytest

test-slow: $(READY)  ## Run the tests that train for minutes
	$(BIN)/python -m pytest -m slow

lint: $(READY)  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## Bring the code into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY)  ## Check types
	$(BIN)/mypy

bench: $(READY)  ## Run the benchmarks
	@for name in ema_teacher dacs_step minicity_speed; do $(BIN)/python benchmarks/$$name.py || exit 1; done

TABLE := $(foreach seed,$(SEEDS),$(foreach row,dacs source_only oracle,runs/minicity/seed_$(seed)/$(row)/.done))

table: $(TABLE)  ## MiniCity over the seeds SEEDS="0 1 2", mean and deviation; OMP_NUM_THREADS=1 make -j2 table is fastest
	@$(BIN)/python benchmarks/minicity_table.py $(foreach seed,$(SEEDS),runs/minicity/seed_$(seed))

runs/minicity/%/.done: | $(READY)
	$(BIN)/lightning-uda fit --config configs/experiment/minicity/$(notdir $*).yaml \
	  --seed_everything $(subst seed_,,$(patsubst %/,%,$(dir $*))) --name minicity/$*
	@touch $@

clean:  ## Remove caches and the virtual environment, not the runs
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
