# Everything runs inside .venv, which each target makes or repairs as needed.
.DEFAULT_GOAL := help
.PHONY: help demo test test-docs check docs benchmark-methods clean nerfstudio test-nerfstudio

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/restage-installed
DOCS_STAMP := $(VENV)/docs-installed
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first interpreter that starts and is new enough; 3.11 comes first, since constraints.txt is tested there.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3 python; do \
	$$candidate -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $$candidate && break; done)
DEMO_FOLDER ?= runs/demo
NERF_VENV := .venv-nerfstudio
NERF_STAMP := $(NERF_VENV)/restage-installed

define CHECK_PYTHON
	@if ! "$(PYTHON)" -c '$(NEW_ENOUGH)' 2>/dev/null; then \
		echo "Restage needs Python 3.11 or newer; found: $$("$(or $(PYTHON),python3)" --version 2>&1)." \
			"Name one with: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.11" >&2; exit 1; fi
endef

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "make %-15s %s\n", $$1, $$2}'

demo: $(STAMP)  ## From prompts to the report page of an edited 3D scene, in 3 to 10 minutes on two cores
	@$(BIN)/restage demo --out $(DEMO_FOLDER)

test: $(STAMP)  ## Run all tests that this machine can
	@$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile --no-loadscope-reorder

test-docs: $(STAMP)  ## Run every shell block of README and docs on tiny settings, some minutes
	@$(BIN)/python -m pytest -q --run-docs --numprocesses auto -o addopts="--import-mode=importlib --strict-markers" tests/docs

check: $(STAMP)  ## Check lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

docs: $(DOCS_STAMP)  ## Build the documentation site in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "Ready: build/site/index.html (to search it, serve the folder: $(BIN)/python -m http.server -d build/site)"

nerfstudio: $(NERF_STAMP)  ## Install nerfstudio with Restage's methods in an environment of its own (about 3.5 GB)
	@echo "Ready: $(NERF_VENV)/bin/ns-train restage -h (docs/nerfstudio.md)"

test-nerfstudio: $(NERF_STAMP)  ## Train and edit a small nerfacto on the CPU, which takes some minutes
	@$(NERF_VENV)/bin/python -m pytest -q tests/nerfstudio

benchmark-methods: $(STAMP)  ## Compare every edit method on unseen worlds, hours on two cores; only what is missing runs (CAPTURE=FOLDER adds photographs)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/methods.py --out runs/methods --rows benchmarks/results/methods.csv \
		--long-idu 900,2700,8100 $(if $(CAPTURE),--capture $(CAPTURE))

clean:  ## Remove the environments and caches; runs stay
	rm -rf $(VENV) $(NERF_VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find restage tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(DOCS_STAMP): $(STAMP)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]' && touch $@

# An environment whose installation was interrupted has no stamp: it is completed, or made anew if that fails.
$(STAMP): pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	@echo "Installing into $(VENV) (some minutes the first time)"
	@install() { $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,view]'; }; \
	if $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		install && touch $@ && exit 0; \
		echo "The environment in $(VENV) cannot be repaired; making it anew" >&2; \
	fi; \
	rm -rf $(VENV) && "$(PYTHON)" -m venv $(VENV) && install && touch $@

# Apart from the main environment, since nerfstudio needs numpy < 2.
$(NERF_STAMP): pyproject.toml constraints-nerfstudio.txt
	$(CHECK_PYTHON)
	@echo "Installing nerfstudio into $(NERF_VENV) (about 3.5 GB, some minutes)"
	@install() { $(NERF_VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints-nerfstudio.txt \
		torch torchvision nerfstudio beartype hypothesis pytest -e . && \
		$(NERF_VENV)/bin/python -c 'from restage.nerfstudio import torchvision_ops as ops; ops.leave_startup_file()'; }; \
	if $(NERF_VENV)/bin/python -m pip --version >/dev/null 2>&1; then \
		install && touch $@ && exit 0; \
		echo "The environment in $(NERF_VENV) cannot be repaired; making it anew" >&2; \
	fi; \
	rm -rf $(NERF_VENV) && "$(PYTHON)" -m venv $(NERF_VENV) && install && touch $@
