PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO := runs/demo
SEEDS ?= 0 1 2
JOBS ?= 1
OPTIONS ?=
ROW ?= cbst
GTA5 ?= data/gta5
CITYSCAPES ?= data/cityscapes
NTHU ?= data/nthu
CAMVID ?= data/camvid
GRID := $(BIN)/lightning-uda grid configs/grids
OVER_SEEDS = --seeds $(SEEDS) --jobs $(JOBS)
FIGURES = $(if $(OPTIONS),,--figures docs/figures/$(1).csv)

export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help demo test test-slow lint format type bench minicity minicity-mit dusk dusk-scratch daformer t2sda nthu leaderboard published docs clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version)'
	@echo "Setting up .venv: downloading and installing packages, a few minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## Train source-only and DACS on the embedded benchmark and show the report (ten to fifteen minutes)
	@echo "1/3  source only: training on labelled game-like scenes"
	@$(BIN)/lightning-uda fit --config configs/demo/source_only.yaml
	@echo "2/3  DACS: the same, and camera-like scenes without labels"
	@$(BIN)/lightning-uda fit --config configs/demo/dacs.yaml
	@echo "3/3  report: IoU on camera-like validation scenes"
	@$(BIN)/lightning-uda report $(DEMO)/source_only $(DEMO)/dacs --output $(DEMO)/report.html

test: $(READY)  ## Run the tests, in two processes
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

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

bench: $(READY)  ## Our code against naive transcriptions, on a quiet machine; writes docs/performance.md (ten minutes)
	$(BIN)/python benchmarks/bench.py --write

docs: $(READY)  ## Build the documentation's site, build/docs/index.html; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

minicity: $(READY)  ## The MiniCity benchmark over SEEDS="0 1 2"; runs whose figures are in docs/figures aren't trained again; JOBS=2 runs two at once
	$(GRID)/minicity.yaml $(OVER_SEEDS) $(call FIGURES,minicity) -- $(OPTIONS)

minicity-mit: $(READY)  ## The same with a small transformer: T2S-DA, DAFormer, MIC, HRDA
	$(GRID)/minicity_mit.yaml $(OVER_SEEDS) $(call FIGURES,minicity_mit) -- $(OPTIONS)

dusk: $(READY)  ## Day to dusk on real frames, from ImageNet weights: make dusk CAMVID=folder
	$(GRID)/dusk.yaml $(OVER_SEEDS) --folders camvid=$(CAMVID) $(call FIGURES,dusk) -- $(OPTIONS)

dusk-scratch: $(READY)  ## The same from random weights: make dusk-scratch CAMVID=folder
	$(GRID)/dusk_scratch.yaml $(OVER_SEEDS) --folders camvid=$(CAMVID) $(call FIGURES,dusk_scratch) -- $(OPTIONS)

daformer: $(READY)  ## DAFormer's family on GTA5 -> Cityscapes: make daformer GTA5=folder CITYSCAPES=folder
	$(GRID)/daformer.yaml $(OVER_SEEDS) --folders gta5=$(GTA5) cityscapes=$(CITYSCAPES) -- $(OPTIONS)

t2sda: $(READY)  ## T2S-DA's tables on GTA5 -> Cityscapes: make t2sda GTA5=folder CITYSCAPES=folder
	$(GRID)/t2sda.yaml $(OVER_SEEDS) --folders gta5=$(GTA5) cityscapes=$(CITYSCAPES) -- $(OPTIONS)

nthu: $(READY)  ## Cityscapes -> NTHU, four cities, ten folds: make nthu ROW=cbst CITYSCAPES=folder NTHU=folder
	$(GRID)/nthu.yaml --rows $(ROW) --jobs $(JOBS) --folders cityscapes=$(CITYSCAPES) nthu=$(NTHU) -- $(OPTIONS)

leaderboard: minicity minicity-mit dusk dusk-scratch  ## These benchmarks, then docs/leaderboard.md: make leaderboard CAMVID=folder
	$(if $(OPTIONS),,$(BIN)/python docs/make_leaderboard.py)

published: $(READY)  ## Rows of docs/results.md over seeds: make published PAIR=gta5_to_cityscapes ROWS="dacs dsp" SOURCE=folder TARGET=folder WEIGHTS=file
	$(BIN)/python docs/make_results.py $(PAIR) runs/published_$(PAIR).yaml
	$(BIN)/lightning-uda grid runs/published_$(PAIR).yaml $(if $(ROWS),--rows $(ROWS)) $(OVER_SEEDS) $(call FIGURES,$(PAIR)) -- \
	  $(if $(SOURCE),--data.source.root $(SOURCE)) $(if $(TARGET),--data.target.root $(TARGET) --data.val.root $(TARGET)) \
	  $(if $(WEIGHTS),--model.network.weights $(WEIGHTS)) $(OPTIONS)

clean:  ## Remove caches and the virtual environment, not the runs
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
