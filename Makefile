PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO := runs/demo
SEEDS ?= 0 1 2
OPTIONS ?=

export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help demo test test-slow lint format type bench table ablation rounds nthu clean

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

test: $(READY)  ## Run the tests, in two processes
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

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

bench: $(READY)  ## Run the benchmarks, on a quiet machine (half an hour)
	@for name in dacs_step dsp_step minicity_speed loading surroundings cbst_thresholds; do $(BIN)/python benchmarks/$$name.py || exit 1; done

TABLE := $(foreach seed,$(SEEDS),$(foreach row,dacs source_only oracle,runs/minicity/seed_$(seed)/$(row)/.done))

table: $(TABLE)  ## MiniCity over the seeds SEEDS="0 1 2", mean and deviation; OMP_NUM_THREADS=1 make -j2 table is fastest
	@$(BIN)/python benchmarks/minicity_table.py $(foreach seed,$(SEEDS),runs/minicity/seed_$(seed))

runs/minicity/%/.done: | $(READY)
	$(BIN)/lightning-uda fit --config configs/experiment/minicity/$(notdir $*).yaml \
	  --seed_everything $(subst seed_,,$(patsubst %/,%,$(dir $*))) --name minicity/$* \
	  --trainer.callbacks+=ConfusionWriter $(OPTIONS)
	@touch $@

ABLATION_ROWS := source_only mean_teacher naive_class_mix dacs dsp_hard_paste dsp_soft_paste dsp dsp_k0
ABLATION := $(foreach seed,$(SEEDS),$(ABLATION_ROWS:%=seed_$(seed)/%/.done))

ablation: $(ABLATION:%=runs/minicity/%) $(ABLATION:%=runs/minicity_bn/%)  ## The rows of DACS's and DSP's tables on MiniCity; OPTIONS='--trainer.precision bf16-mixed' where that is fast (hours)
	@$(BIN)/python benchmarks/minicity_table.py $(foreach seed,$(SEEDS),runs/minicity/seed_$(seed)) --rows $(ABLATION_ROWS)
	@echo "The same with BatchNorm statistics of target images; source-only is then AdaBN:"
	@$(BIN)/python benchmarks/minicity_table.py $(foreach seed,$(SEEDS),runs/minicity_bn/seed_$(seed)) --rows $(ABLATION_ROWS)

runs/minicity_bn/%/.done: runs/minicity/%/.done | $(READY)
	$(BIN)/lightning-uda validate --config configs/experiment/minicity/$(notdir $*).yaml \
	  --seed_everything $(subst seed_,,$(patsubst %/,%,$(dir $*))) --name minicity_bn/$* \
	  --ckpt_path "$$(ls -t runs/minicity/$*/version_*/checkpoints/last.ckpt | head -1)" --trainer.callbacks+=AdaptBatchNorm $(OPTIONS)
	@touch $@

ROUND_ROWS := st cbst cbst_sp
ROUNDS := $(foreach seed,$(SEEDS),$(foreach row,$(ROUND_ROWS),runs/rounds/seed_$(seed)/$(row)/.done))

rounds: $(ROUNDS)  ## ST, CBST and CBST-SP on MiniCity from source-only checkpoints, 100 target images, mean and deviation
	@$(BIN)/python benchmarks/minicity_table.py $(foreach seed,$(SEEDS),runs/rounds/seed_$(seed)) \
	  --rows source_only $(ROUND_ROWS)

define ROUND_RULES
$(foreach row,$(ROUND_ROWS),runs/rounds/seed_$(1)/$(row)/.done): runs/rounds/seed_$(1)/source_only
endef
$(foreach seed,$(SEEDS),$(eval $(call ROUND_RULES,$(seed))))

runs/rounds/seed_%/source_only: | runs/minicity/seed_%/source_only/.done
	@mkdir -p $(dir $@)
	@ln -sfn ../../minicity/seed_$*/source_only $@

runs/rounds/%/.done: | $(READY)
	$(BIN)/lightning-uda fit --config configs/experiment/minicity/$(notdir $*).yaml \
	  --seed_everything $(subst seed_,,$(patsubst %/,%,$(dir $*))) --name rounds/$* \
	  --model.source_checkpoint runs/rounds/$(dir $*)source_only --data.target.length 100 --data.num_workers 1 $(OPTIONS)
	@touch $@

ROW ?= cbst
CITYSCAPES ?= data/cityscapes
NTHU ?= data/nthu
FOLDS := $(foreach city,rome rio tokyo taipei,$(foreach fold,0 1 2 3 4 5 6 7 8 9,runs/nthu_$(ROW)/$(city)_$(fold)/.done))

nthu: $(FOLDS)  ## Cityscapes -> NTHU, four cities, ten folds: make nthu ROW=cbst CITYSCAPES=folder NTHU=folder
	$(BIN)/lightning-uda folds $(dir $(FOLDS)) --output runs/nthu_$(ROW)/folds.csv

runs/nthu_$(ROW)/%/.done: | $(READY)
	$(BIN)/lightning-uda fit --config configs/experiment/cityscapes_to_nthu/$(ROW).yaml --name nthu_$(ROW)/$* \
	  --data.source.root $(CITYSCAPES) --data.target.root $(NTHU) --data.val.root $(NTHU) \
	  $(foreach set,target val,--data.$(set).city $(firstword $(subst _, ,$*)) --data.$(set).fold $(lastword $(subst _, ,$*))) \
	  --trainer.callbacks+=ConfusionWriter $(OPTIONS)
	@touch $@

clean:  ## Remove caches and the virtual environment, not the runs
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
