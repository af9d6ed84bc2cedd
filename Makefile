# Every command: `make help`. A fresh machine needs python >= 3.11, make and git.
# Each variable on the command line becomes a Hydra override: make pipeline seed=7 ppo.args.kl_coef=0.2

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Variables of make or of this file; all others on the command line are overrides.
NOT_OVERRIDES := PYTHON VENV BIN STAMP BENCH PYTEST SHELL MAKEFLAGS MAKEOVERRIDES
quote = '$(subst ','\'',$(1))'
OVERRIDES := $(foreach v,$(filter-out $(NOT_OVERRIDES),$(.VARIABLES)),$(if $(findstring command line,$(origin $(v))),$(call quote,$(v)=$(value $(v)))))

.DEFAULT_GOAL := help
.PHONY: help setup pipeline sweep data sft reward judge ppo rloo dpo evaluate config status show chat card publish clean prune clean-all lint test test-fast test-cluster test-gpu report-check chat-check bench

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "Overrides: make pipeline experiment=gpt2_hh seed=7 ppo.args.kl_coef=0.2"

setup: $(STAMP)  ## create .venv with pinned packages; others do it when needed

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: python %d.%d found, expected 3.11 or newer; set PYTHON=<python3.11>" % sys.version_info[:2])'
	@echo "installing into $(VENV), once (about 1.5 GB)"
	@test -x $(BIN)/python || rm -f $(BIN)/python*
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m compileall -q src  # pip compiles all packages but an editable one
	@touch $@

pipeline: $(STAMP)  ## build what is not done: SFT, reward model, PPO, evaluation
	@$(BIN)/python -m gpt2_rlhf pipeline $(OVERRIDES)

sweep: $(STAMP)  ## build and compare all points: make sweep seed=0,1
	@$(BIN)/python -m gpt2_rlhf sweep $(OVERRIDES)

data sft reward judge ppo rloo dpo evaluate: $(STAMP)
	@$(BIN)/python -m gpt2_rlhf $@ $(OVERRIDES)
data:  ## print the row report, and rows as the trainers get them
sft:  ## build up to supervised fine-tuning
reward:  ## build up to the reward model
judge:  ## build up to the judge, a second reward model
ppo:  ## build up to PPO
rloo:  ## build up to RLOO, as method=rloo
dpo:  ## build up to DPO, as method=dpo
evaluate:  ## build up to the comparison of base, SFT and policy

config status show chat card publish: $(STAMP)
	@$(BIN)/python -m gpt2_rlhf $@ $(OVERRIDES)
config:  ## print every value that is set, after overrides
status:  ## print which stages are done, partial or missing, and why
show:  ## print all tables of the newest run; table=NAME: one
chat:  ## talk to base, SFT and PPO; chat.web=true: in the browser
card:  ## write the model cards again, without a push
publish:  ## push the newest run: make publish publish.repo_id=me/name

clean prune: $(STAMP)
	@$(BIN)/python -m gpt2_rlhf $@ $(OVERRIDES)
clean:  ## delete unfinished and damaged stages
prune:  ## ask, and delete finished stages that no run shows
clean-all: $(STAMP)  ## ask, and delete all stages and runs
	@$(BIN)/python -m gpt2_rlhf clean --all $(OVERRIDES)

lint: $(STAMP)  ## run ruff and pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

PYTEST = $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: $(STAMP)  ## run all tests but those of test-cluster and test-gpu
	@$(PYTEST) -m "not cluster and not gpu"
test-fast: $(STAMP)  ## run the tests that are not marked slow
	@$(PYTEST) -m "not slow"

test-gpu: $(STAMP)  ## run the tests of what only a GPU runs
	@$(PYTEST) --numprocesses 2 -m gpu tests/test_gpu.py

test-cluster: $(STAMP)  ## run the tests of several nodes and of a real Slurm
	@# with four workers one would get a single test, which xdist begins only when no more tests can come
	@$(PYTEST) --numprocesses 3 --dist loadgroup -m cluster tests/launch/test_nodes.py tests/launch/test_slurm.py

report-check: $(STAMP)  ## check the report page in a headless Chromium
	@PYTHONPATH=tests $(BIN)/python -m helpers.browser_check

chat-check: $(STAMP)  ## use the page of the chat in a headless Chromium
	@PYTHONPATH=tests $(BIN)/python -m helpers.chat_check

bench: $(STAMP)  ## compare the speed with stock TRL: make bench BENCH=ppo-small
	@$(BIN)/python -m benchmarks.bench $(BENCH) $(OVERRIDES)
