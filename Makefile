# `make course` runs the main path and prints the comparison; `make test` runs every check. Both install what they need.
# `make course SAVE=--save` also stores the outputs in the notebooks, for committing them.
PYTHON ?= python3
BIN := .venv/bin
export CUBLAS_WORKSPACE_CONFIG := :4096:8
# glibc keeps large blocks instead of returning them to the kernel after each tensor, which usually saves CPU training a tenth of its time
export GLIBC_TUNABLES := glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483648

COURSE := 01_supervised_finetuning/01_data_and_baseline.ipynb \
          01_supervised_finetuning/02_full_finetuning.ipynb \
          02_reward_modeling/01_preference_data.ipynb \
          02_reward_modeling/02_bradley_terry_reward_model.ipynb \
          03_ppo_alignment/03_ppo_training.ipynb \
          04_evaluation/01_automatic_metrics.ipynb \
          04_evaluation/03_full_comparison.ipynb

.PHONY: course test results lint
.venv/installed: requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

course: .venv/installed
	$(BIN)/python tests/course.py $(SAVE) $(COURSE)

test: .venv/installed lint
	$(BIN)/python -m pytest tests -q --durations=15
	$(BIN)/python -m pytest --nbval -q --durations=10 0*_*

results: .venv/installed
	$(BIN)/python -m rlhf_lib results --recipe tiny
	$(BIN)/python -m rlhf_lib scaling --recipe tiny

lint: .venv/installed
	$(BIN)/ruff check .
