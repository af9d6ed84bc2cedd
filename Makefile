# Everything runs from here: `make help`. On a fresh machine python >= 3.11, make and git are enough.
# Any variable given on the command line becomes a Hydra override: make pipeline seed=7 ppo.args.kl_coef=0.2

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Variables of make itself, or of this file: all others on the command line are overrides.
NOT_OVERRIDES := PYTHON VENV BIN STAMP BENCH SHELL MAKEFLAGS MAKEOVERRIDES
quote = '$(subst ','\'',$(1))'
OVERRIDES := $(foreach v,$(filter-out $(NOT_OVERRIDES),$(.VARIABLES)),$(if $(findstring command line,$(origin $(v))),$(call quote,$(v)=$(value $(v)))))

.DEFAULT_GOAL := help
.PHONY: help setup pipeline data sft reward judge ppo evaluate config status card publish clean clean-all lint test report-check bench

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "Overrides: make pipeline experiment=gpt2_hh seed=7 ppo.args.kl_coef=0.2"

setup: $(STAMP)  ## virtual environment with pinned packages (the others do it when needed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: python %d.%d found, 3.11 or newer wanted; set PYTHON=<python3.11>" % sys.version_info[:2])'
	@echo "installing into $(VENV), once (about 1.5 GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

pipeline: $(STAMP)  ## SFT, reward model, PPO and evaluation; re-uses what is done
	@$(BIN)/python -m gpt2_rlhf pipeline $(OVERRIDES)

data sft reward judge ppo evaluate: $(STAMP)
	@$(BIN)/python -m gpt2_rlhf $@ $(OVERRIDES)
data:  ## the row report, and rows as the trainers see them
sft:  ## up to supervised fine-tuning
reward:  ## up to the reward model
judge:  ## up to the judge, a second reward model that PPO is not trained on
ppo:  ## up to PPO
evaluate:  ## up to the comparison of base, SFT and PPO

config status card publish: $(STAMP)
	@$(BIN)/python -m gpt2_rlhf $@ $(OVERRIDES)
config:  ## every value that is set, after overrides
status:  ## which stages are done, partial or missing, and why
card:  ## write the model cards again, without a push
publish:  ## push the newest run: make publish publish.repo_id=user/name; publish.dry_run=true only shows it

clean: $(STAMP)  ## delete unfinished stages; finished ones stay
	@$(BIN)/python -m gpt2_rlhf clean $(OVERRIDES)
clean-all: $(STAMP)  ## delete finished stages as well
	@$(BIN)/python -m gpt2_rlhf clean --all $(OVERRIDES)

lint: $(STAMP)  ## ruff and pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

test: $(STAMP)  ## all tests, a process for each core up to four
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

report-check: $(STAMP)  ## the report in a headless Chromium, on a phone's width and a desk's
	@PYTHONPATH=tests $(BIN)/python -m helpers.browser_check

bench: $(STAMP)  ## stock TRL against ours, by turns: make bench BENCH='ppo-small --hh folder'
	@$(BIN)/python -m benchmarks.bench $(BENCH) $(OVERRIDES)
